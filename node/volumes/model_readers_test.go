package volumes

import (
	"context"
	"slices"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
)

// readBeside has a node that has nothing of a volume read it beside whoever writes it: it has
// what the bucket has, and leaves nothing behind.
func (w *model) readBeside(r *rapid.T) {
	m, name := w.node(r), w.name(r)
	body, err := w.farm.said(name)
	if _, here := m.index.Get(name); here || err != nil || body.Rolling != 0 {
		return
	}
	var found disk
	w.deed(r, m, "read "+name, w.settled(), func() error {
		if _, _, err := m.Put(context.Background(), name, Spec{ReadOnly: true, Transport: terms.NBD}); err != nil {
			return err
		}
		a := m.device(name)
		found, err = readDisk(a.vol.Geometry().Size, func(p []byte, off int64) error { return a.front.ReadAt(context.Background(), p, off) })
		return err
	}, func(how how) {
		if how != done {
			return
		}
		want, err := w.observe(catalog.Snapshot{ID: body.ID, Size: body.Size, Epoch: body.Epoch, Folded: body.Folded, At: body.Through()})
		if err != nil || !slices.Equal(found, want) {
			w.fatal(r, "who reads %q beside its writer sees other bytes than the bucket has: %v", name, err)
		}
	})
	if e, _ := m.index.Get(name); e.Reader {
		if _, err := m.Detach(context.Background(), name, true); err != nil {
			w.fatal(r, "who reads %q can't be detached: %v", name, err)
		}
	}
}
