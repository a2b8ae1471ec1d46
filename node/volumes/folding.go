package volumes

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// parallelFolds bounds the folds of a node that are under way: each reads the disk and
// fills the uplink; those that are small share packs.
const parallelFolds = 8

// newFolds is for a volume that was just opened.
func (a *attached) newFolds(e index.Entry) *fold.Paced {
	return fold.NewPaced(a.vol, fold.Config{
		Bucket: a.v.cfg.Origin, Revise: a.revise, Settle: a.settle, Tails: a.tails,
		Record: a.own,
		Root: func(ctx context.Context, head pack.Head) (volume.Source, error) {
			return a.v.cfg.Library.Image(ctx, fetch.Root{Head: head, As: []content.Ref{{Kind: content.KindVolume, Name: e.Name}}})
		},
		Pending: func() []content.Position { return a.waiting().Places() }, SizeAt: func(at content.Position) int64 { return a.waiting().SizeAt(at) },
		Packs: a.v.packs, Keep: a.v.cfg.Keep, Dir: a.v.index.Path(e), Scope: content.Farm(a.v.cfg.Farm), Signer: a.v.cfg.Signer, Now: a.v.cfg.Now, Log: a.v.cfg.Log,
		At: func(s fold.Step) { a.v.cfg.At("fold " + string(s)) },
	})
}

// keepFolding folds the volumes that are due, until ctx ends.
func (v *Volumes) keepFolding(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(parallelFolds)
	var pace fold.Pace
	err := every(ctx, func() {
		pace.Begin(v.Count(), v.cfg.Now())
		for name, a := range v.devices { // in no order, so that the pace favours none
			_, _, st := a.record()
			if a.vol != nil {
				a.vol.Yield()
			}
			if a.vol == nil || a.folds == nil {
				continue
			}
			a.folds.GiveWay()
			if s, _ := a.guard.Status(); st.Stage != right.Serving || !a.folds.IsDue(&pace, s.Needs) {
				continue
			}
			group.TryGo(func() error {
				if err := a.folds.Tend(ctx); err != nil && ctx.Err() == nil {
					v.cfg.Log.Warn("a volume is not folded; what was written since stays on this node, and that is tried again", "volume", name, "err", err)
				}
				return nil
			})
		}
	})
	return errors.Join(err, group.Wait())
}

// waiting says which snapshots are not durable yet. Those that have a place already are
// noted, and have their records, once nobody is placing one.
func (a *attached) waiting() index.Entry {
	a.placing.Lock()
	defer a.placing.Unlock()
	e, _ := a.v.index.Get(a.Name())
	return e
}

// settle makes those snapshots durable that the volume's record reaches.
func (a *attached) settle(ctx context.Context, now catalog.Volume) error {
	for _, w := range a.waiting().Waiting {
		n := 1 + slices.IndexFunc(now.Segments, func(s content.SegmentRef) bool { return s.Through == w.At })
		if n == 0 && now.Base != w.At {
			continue
		}
		if err := a.v.records().MakeDurable(ctx, content.Ref{Kind: content.KindSnapshot, Name: a.Name(), Seq: w.Number}, now, n); err != nil {
			return err
		}
		if err := a.v.index.Reached(a.Name(), w); err != nil {
			return err
		}
		a.vol.Release(w.At)
	}
	return nil
}

// tails are those of a volume whose flushes go to the origin, nil for others.
func (a *attached) tails() *fold.Tails {
	_, body, st := a.record()
	if st.Stage != right.Serving {
		return nil
	}
	return a.line.Of(body, a.vol)
}
