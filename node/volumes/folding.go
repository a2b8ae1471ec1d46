package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// parallelFolds bounds the folds of a node that are under way: each reads the disk and
// fills the uplink.
const parallelFolds = 4

// newFolds is for a volume that was just opened.
func (a *attached) newFolds(e index.Entry) *fold.Paced {
	return fold.NewPaced(a.vol, fold.Config{
		Bucket: a.v.cfg.Origin, Revise: a.revise, Settle: a.settle, Tails: a.tails,
		Record: func() catalog.Volume { _, body, _ := a.record(); return body },
		Root: func(ctx context.Context, head pack.Head) (volume.Source, error) {
			return a.v.cfg.Library.Image(ctx, fetch.Root{Head: head})
		},
		Pending: func() (out []content.Position) {
			for _, w := range a.waiting() {
				out = append(out, w.At)
			}
			return out
		},
		Dir: a.v.index.Path(e), Scope: content.Farm(a.v.cfg.Farm), Signer: a.v.cfg.Signer, Now: a.v.cfg.Now, Log: a.v.cfg.Log,
		At: func(s fold.Step) error { a.v.cfg.At("fold " + string(s)); return nil },
	})
}

// keepFolding folds the volumes that are due, until ctx ends.
func (v *Volumes) keepFolding(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(parallelFolds)
	err := every(ctx, func() {
		_ = v.each(func(name string, a *attached) error {
			_, _, st := a.record()
			if a.vol == nil || a.folds == nil || st.Stage != right.Serving || !a.folds.IsDue() {
				return nil
			}
			group.TryGo(func() error {
				if err := a.folds.Run(ctx, fold.Safe); err != nil && ctx.Err() == nil {
					v.cfg.Log.Warn("a volume is not folded; what was written since stays on this node, and that is tried again", "volume", name, "err", err)
				}
				return nil
			})
			return nil
		})
	})
	return errors.Join(err, group.Wait())
}

// waiting are the snapshots that are not durable yet. Those that have a place already are
// noted, and have their records, once nobody is placing one.
func (a *attached) waiting() []index.Waiting {
	a.placing.Lock()
	defer a.placing.Unlock()
	e, _ := a.v.index.Get(a.Name())
	return e.Waiting
}

// settle makes those snapshots durable that the volume's record reaches.
func (a *attached) settle(ctx context.Context, now catalog.Volume) error {
	for _, w := range a.waiting() {
		n := 1 + slices.IndexFunc(now.Segments, func(s content.SegmentRef) bool { return s.Through == w.At })
		if n == 0 && now.Base != w.At {
			continue
		}
		if err := a.v.makeDurable(ctx, a.Name(), w, now, n); err != nil {
			return err
		}
		if err := a.v.index.Reached(a.Name(), w); err != nil {
			return err
		}
		a.vol.Release(w.At)
	}
	return nil
}

// makeDurable has the record of a snapshot name what the volume's does up to there. One
// that has no record was given up.
func (v *Volumes) makeDurable(ctx context.Context, name string, w index.Waiting, now catalog.Volume, segments int) error {
	ref := content.Ref{Kind: content.KindSnapshot, Name: name, Seq: w.Number}
	_, err := v.records().ChangeSnapshot(ctx, ref.RecordName(), func(body *catalog.Snapshot) bool {
		if body.Durable || body.ID != now.ID {
			return false
		}
		body.Head, body.Lineage, body.Base, body.Segments, body.Durable = now.Head, now.Lineage, now.Base, now.Segments[:segments], true
		return true
	})
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	return err
}

// readable returns the bucket, for segments that others have put there.
func (v *Volumes) readable() (bucket.Bucket, error) {
	if v.cfg.Origin == nil {
		return nil, fmt.Errorf("%w: this node has no origin to read segments from", content.ErrUnavailable)
	}
	return v.cfg.Origin()
}

// stored are segments of a record at the origin, and those behind them.
func (v *Volumes) stored(ctx context.Context, refs []content.SegmentRef, tails []fold.Stored) []journal.AdoptedSegment {
	return fold.Adopted(ctx, append(fold.InBucket(v.readable, refs), tails...))
}

// tails are those of a volume whose flushes go to the origin, nil for others.
func (a *attached) tails() *fold.Tails {
	_, body, st := a.record()
	if st.Stage != right.Serving {
		return nil
	}
	return a.line.Of(body)
}
