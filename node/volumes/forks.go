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
	a := v.device(ref.Name)
	switch away := a == nil || a.folds == nil; {
	case ref.Kind == content.KindSnapshot:
		return v.parentSnapshot(ctx, ref.RecordName())
	case ref.Folded, away && v.names().Released(ctx, ref.Name):
		return v.parentFolded(ctx, ref.Name)
	case away:
		made, err := v.names().Snapshot(ctx, ref.Name, terms.SnapshotSpec{Label: "fork", Wait: terms.Durable})
		if err != nil {
			return moment.Parent{}, fmt.Errorf("%s: %w", ref, err)
		}
		return v.parentSnapshot(ctx, made.ID)
	}
	a.placing.Lock()
	at, now, err := a.share(ctx, func(*catalog.Volume) {})
	a.placing.Unlock()
	if err != nil {
		return moment.Parent{}, err
	}
	return moment.ParentAt(a.vol, catalog.Snapshot{ID: now.ID, Size: now.Size, Folded: now.Folded, At: at, FsUsed: now.FsUsed})
}

// parentSnapshot is a snapshot that is durable, or of this node.
func (v *Volumes) parentSnapshot(ctx context.Context, id string) (moment.Parent, error) {
	r, body, err := v.records().Snapshot(ctx, id)
	if err == nil && r.Farm != v.cfg.Farm {
		err = fmt.Errorf("%w: %s belongs to farm %s: `grange image promote` makes an image of it, for all farms", content.ErrForbidden, id, r.Farm)
	}
	if err != nil {
		return moment.Parent{}, err
	}
	if a := v.device(body.Volume); a != nil && a.folds != nil && !body.Orphan {
		if a.keeps(body) {
			if !body.Durable { // a fold that was under way may have laid it on another root
				body.Folded = a.own().Folded
			}
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
		return moment.Parent{}, fmt.Errorf("%w: %s is not durable, and %s has what the bucket lacks of it: fork it there", content.ErrConflict, id, v.cfg.Who(body.Holder))
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
	return moment.Parent{Known: catalog.Snapshot{ID: body.ID, Size: body.Size, Folded: body.Folded, FsUsed: body.FsUsed}, Segments: v.bucket().Stored(ctx, body.Segments, nil)}, nil
}
