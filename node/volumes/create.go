package volumes

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// create makes a volume. The device map names it before anything else exists, so
// that a restart can clear away what a crash left; the record is committed before
// it is served, so that of two nodes that create one name one is told.
func (v *Volumes) create(ctx context.Context, name string, spec Spec) error {
	e, base, err := v.plan(ctx, name, spec)
	if err != nil {
		return err
	}
	mine, err := v.nameIsFree(ctx, name)
	if err != nil {
		return err
	}
	if err := v.devs.put(e); err != nil { // a crash from here on: the restart erases it
		return err
	}
	if err := volume.Create(v.folder(e), volume.Meta{ID: e.ID, Size: e.Size, Epoch: e.Epoch, Created: e.Created}); err != nil {
		return errors.Join(err, v.erase(e))
	}
	_, err = v.cfg.Registry.CommitVolume(ctx, name, v.body(e, base), mine)
	switch {
	case err == nil:
		e.Committed = true // a crash before the next line: the record names this node, which creates it anew
	case !errors.Is(err, content.ErrUnavailable):
		return errors.Join(v.taken(ctx, err), v.erase(e))
	}
	e.Stage, e.Attached = ready, true
	if err := v.devs.put(e); err != nil {
		return errors.Join(err, v.erase(e))
	}
	return v.attach(ctx, e)
}

// plan works out what the volume will be; nothing is made yet.
func (v *Volumes) plan(ctx context.Context, name string, spec Spec) (e entry, base *Base, err error) {
	e = entry{Name: name, Size: spec.Size, From: spec.From, Transport: spec.Transport, Durability: spec.Durability,
		ReadOnly: spec.ReadOnly, Epoch: 1, Created: v.cfg.Now(), Stage: creating}
	rand.Read(e.ID[:])
	e.Folder = hex.EncodeToString(e.ID[:])
	if spec.From == (content.Ref{}) {
		if e.Size == 0 {
			return e, nil, fmt.Errorf("%w: a blank volume needs a size", content.ErrInvalid)
		}
		return e, nil, nil
	}
	b, err := v.cfg.Library.Base(ctx, spec.From)
	if err != nil {
		return e, nil, err
	}
	if e.Size == 0 {
		e.Size = b.Head.Root.Size
	}
	if e.Size < b.Head.Root.Size {
		return e, nil, fmt.Errorf("%w: %s has %d bytes, and a volume of %d can't hold it", content.ErrInvalid, spec.From, b.Head.Root.Size, e.Size)
	}
	e.Head, err = b.Head.Encode(v.codec)
	return e, &b, err
}

// nameIsFree looks at the record first, so that a name that is taken costs
// nothing. A record of this node for a volume that it does not have was committed
// just before a crash, and nobody has used the volume: it is returned, to be
// replaced.
func (v *Volumes) nameIsFree(ctx context.Context, name string) (mine *catalog.Record, err error) {
	r, err := v.cfg.Registry.Volume(ctx, name)
	switch {
	case errors.Is(err, content.ErrNotFound), errors.Is(err, content.ErrUnavailable):
		return nil, nil
	case err != nil:
		return nil, err
	}
	body, err := catalog.DecodeVolume(v.codec, r.Body)
	if err != nil {
		return nil, err
	}
	if body.Holder == v.cfg.Self {
		return &r, nil
	}
	return nil, fmt.Errorf("%w: %s", content.ErrConflict, v.holding(ctx, r, body))
}

func (v *Volumes) body(e entry, base *Base) catalog.Volume {
	b := catalog.Volume{ID: e.ID, Size: e.Size, From: e.From, Durability: e.Durability, Epoch: e.Epoch, Holder: v.cfg.Self, State: catalog.Attached, ReadOnly: e.ReadOnly}
	if base != nil {
		b.Head = &base.Head
	}
	return b
}

func (v *Volumes) folder(e entry) string { return filepath.Join(v.cfg.Dir, e.Folder) }

// erase removes a volume's folder, then its entry.
func (v *Volumes) erase(e entry) error {
	err := errors.Join(os.RemoveAll(v.folder(e)), os.RemoveAll(v.folder(e)+".new"))
	return errors.Join(err, v.devs.remove(e.Name))
}
