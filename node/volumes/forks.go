package volumes

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// parentOf finds what a volume or a snapshot is to be forked from.
func (v *Volumes) parentOf(ctx context.Context, ref content.Ref) (moment.Parent, error) {
	switch {
	case ref.Kind == content.KindSnapshot:
		return v.parentSnapshot(ctx, ref.RecordName())
	case ref.Folded:
		return v.parentFolded(ctx, ref.Name)
	}
	a := v.device(ref.Name)
	if a == nil || a.folds == nil {
		made, err := v.names().Snapshot(ctx, ref.Name, terms.SnapshotSpec{Label: "fork", Wait: terms.Durable})
		if err != nil {
			return moment.Parent{}, err
		}
		return v.parentSnapshot(ctx, made.ID)
	}
	a.placing.Lock()
	at, now, err := a.share(ctx, func(*catalog.Volume) {})
	a.placing.Unlock()
	if err != nil {
		return moment.Parent{}, err
	}
	known := catalog.Snapshot{ID: now.ID, Size: now.Size, Folded: now.Folded, At: at, FsUsed: now.FsUsed}
	return moment.ParentAt(a.vol, known)
}

// parentSnapshot is a snapshot that is durable, or of this node.
func (v *Volumes) parentSnapshot(ctx context.Context, id string) (moment.Parent, error) {
	_, body, err := v.records().Snapshot(ctx, id)
	if err != nil {
		return moment.Parent{}, err
	}
	if a := v.device(body.Volume); a != nil && a.folds != nil && !body.Orphan {
		if a.keeps(body) {
			if p, err := moment.ParentAt(a.vol, body); err == nil || !body.Durable {
				return p, err
			}
		} else if _, body, err = v.records().Snapshot(ctx, id); err != nil { // it has become durable meanwhile
			return moment.Parent{}, err
		}
	}
	if body.Orphan && body.Holder == v.cfg.Self {
		m, err := v.momentOfOrphan(ctx, body)
		if err != nil {
			return moment.Parent{}, err
		}
		return m.Parent(body)
	}
	if !body.Durable {
		return moment.Parent{}, fmt.Errorf("%w: %s is not durable yet, and %s has what the bucket lacks of it: fork it there, or wait until it is", content.ErrConflict, id, v.cfg.Who(body.Holder))
	}
	return moment.Parent{Known: body, Segments: v.bucket().Stored(ctx, body.Segments, nil)}, nil
}

// parentFolded is what the bucket has of a volume, wherever that is. Its record says first
// that others name what is there, so that its node leaves that alone.
func (v *Volumes) parentFolded(ctx context.Context, name string) (moment.Parent, error) {
	body, err := v.records().Share(ctx, name)
	if err != nil {
		return moment.Parent{}, fmt.Errorf("volume %q: %w", name, err)
	}
	known := catalog.Snapshot{ID: body.ID, Size: body.Size, Folded: body.Folded, FsUsed: body.FsUsed}
	return moment.Parent{Known: known, Segments: v.bucket().Stored(ctx, known.Segments, nil)}, nil
}
