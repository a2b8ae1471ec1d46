package volumes

import (
	"context"
	"errors"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// An orphan is what a node had of a volume that another took, and the bucket had not: the
// snapshot NAME@eN-orphan. Its data are the volume's folder, as it was; when the volume
// itself comes back to this node, the folder steps aside.

// keepOrphans writes the records of orphans that have none, as far as the origin answers.
func (v *Volumes) keepOrphans(ctx context.Context) {
	for _, e := range v.index.Sorted() {
		if e.Taken == "" || e.Orphan || e.Empty || ctx.Err() != nil {
			continue
		}
		if err := v.keepOrphan(ctx, e); err != nil {
			v.cfg.Log.Warn("what was taken from this node, and is on its disk alone, is no snapshot yet", "volume", e.Name, "err", err)
		}
	}
}

// keepOrphan makes a snapshot of what is left here of a volume that was taken away.
func (v *Volumes) keepOrphan(ctx context.Context, e index.Entry) error {
	dirty, err := index.HasJournal(v.index.Path(e))
	if err == nil && dirty {
		err = v.records().PutSnapshot(ctx, nil, catalog.Snapshot{
			Volume: e.Name, Orphan: true, ID: e.ID, Size: e.Size, Epoch: e.Epoch, Head: e.Head, Lineage: e.Lineage, Base: e.Base, Segments: e.Segments,
			At: e.Through(), Parent: e.From, Holder: v.cfg.Self, Created: v.cfg.Now(), FsUsed: e.FsUsed,
		})
	}
	if err != nil && !errors.Is(err, content.ErrExists) { // it has one from before a crash
		return err
	}
	_, err = v.index.Change(e.Name, func(e *index.Entry) { e.Orphan = true })
	return err
}
