package volumes

import (
	"cmp"
	"context"
	"fmt"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// parent is what a fork begins as.
type parent struct {
	size     int64
	known    catalog.Snapshot // what its record names of it
	segments []volume.AdoptedSegment
	done     func() // gives back what was kept of it; nil for nothing
}

// end gives back what was kept of the parent.
func (p parent) end() {
	if p.done != nil {
		p.done()
	}
}

// begins has an entry be a fork. What it begins with is the parent's on this node's disk,
// where that has it, by hard links.
func (p parent) begins(e *index.Entry) error {
	e.Size = cmp.Or(e.Size, p.size)
	if e.Size < p.size {
		return fmt.Errorf("%w: %s has %d bytes, and a volume of %d can't hold it", content.ErrInvalid, e.From, p.size, e.Size)
	}
	e.Head, e.Lineage, e.Base, e.Segments, e.FsUsed = p.known.Head, p.known.Lineage, p.known.Base, p.known.Segments, p.known.FsUsed
	e.Ancestors = fold.Ancestors(p.segments, e.ID)
	return nil
}

// parentOf finds what a volume or a snapshot is to be forked from.
func (v *Volumes) parentOf(ctx context.Context, ref content.Ref) (parent, error) {
	switch {
	case ref.Kind == content.KindSnapshot:
		return v.parentSnapshot(ctx, ref.RecordName())
	case ref.Folded:
		return v.parentFolded(ctx, ref.Name)
	}
	a := v.device(ref.Name)
	if a == nil || a.folds == nil {
		made, err := v.snapshotElsewhere(ctx, ref.Name, SnapshotSpec{Label: "fork", Wait: terms.Durable})
		if err != nil {
			return parent{}, err
		}
		return v.parentSnapshot(ctx, made.ID)
	}
	at, now, err := a.share(ctx, func(*catalog.Volume) {})
	if err != nil {
		return parent{}, err
	}
	known := catalog.Snapshot{ID: now.ID, Size: now.Size, Head: now.Head, Lineage: now.Lineage, Base: now.Base, Segments: now.Segments, At: at, FsUsed: now.FsUsed}
	return a.parentAt(known, func() { a.vol.Release(at) })
}

// parentAt is a place of a volume of this node, which is kept until done.
func (a *attached) parentAt(known catalog.Snapshot, done func()) (parent, error) {
	p := parent{size: known.Size, known: known, done: done}
	last := known.Base
	for _, s := range a.vol.Sealed() {
		if s.Through.Seq > known.Base.Seq && s.Through.Seq <= known.At.Seq {
			p.segments = append(p.segments, volume.AdoptedSegment{Ref: s.SegmentRef, Path: s.Path})
			last = s.Through
		}
	}
	if last.Seq != known.At.Seq {
		done()
		return parent{}, fmt.Errorf("%w: its journal was rewritten meanwhile; try again", content.ErrUnavailable)
	}
	return p, nil
}

// parentSnapshot is a snapshot that is durable, or of this node.
func (v *Volumes) parentSnapshot(ctx context.Context, id string) (parent, error) {
	_, body, err := v.records().Snapshot(ctx, id)
	if err != nil {
		return parent{}, err
	}
	if a := v.device(body.Volume); a != nil && a.folds != nil && !body.Orphan && a.vol.Keep(body.At) == nil {
		if p, err := a.parentAt(body, func() { a.vol.Release(body.At) }); err == nil || !body.Durable {
			return p, err
		}
	}
	if !body.Durable {
		who, _ := v.cfg.Holder(ctx, body.Holder)
		return parent{}, fmt.Errorf("%w: %s is not durable yet, and %s has what the bucket lacks of it: fork it there, or wait until it is", content.ErrConflict, id, who)
	}
	return v.parentInBucket(ctx, body)
}

// parentInBucket is what the bucket has.
func (v *Volumes) parentInBucket(ctx context.Context, known catalog.Snapshot) (parent, error) {
	return parent{known.Size, known, v.stored(ctx, known.Segments, nil), nil}, nil
}

// parentFolded is what the bucket has of a volume, wherever that is. Its record says first
// that others name what is there, so that its node leaves that alone.
func (v *Volumes) parentFolded(ctx context.Context, name string) (parent, error) {
	body, err := v.records().ChangeVolume(ctx, name, func(body *catalog.Volume) bool {
		through := body.Through().Seq
		shares := through > body.Shared
		body.Shared = max(through, body.Shared)
		return shares
	})
	if err != nil {
		return parent{}, fmt.Errorf("volume %q: %w", name, err)
	}
	return v.parentInBucket(ctx, catalog.Snapshot{ID: body.ID, Size: body.Size, Head: body.Head, Lineage: body.Lineage, Base: body.Base, Segments: body.Segments, FsUsed: body.FsUsed})
}
