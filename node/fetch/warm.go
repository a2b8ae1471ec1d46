package fetch

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/patience"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

const (
	// warmPart bounds the bytes that are asked for at once: what a run has, mostly.
	warmPart = 8 << 20
	// strictTries is how often more a prefetch that nobody is to read the origin for asks the
	// members: announcements may be seconds late.
	strictTries = 4
)

// Warm brings the whole image into the cache, in the order that the planner says.
// Progress is given bytes by source, one call at a time; it may be nil. ErrNoSpace means
// that all came and the cache could not keep it.
func (m *Image) Warm(ctx context.Context, progress func(source Source, n int)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if progress == nil {
		progress = func(Source, int) {}
	}
	m.rs.Load().peers.Want()
	w := &warming{m: m, size: int64(m.rs.Load().shape.ChunkMax), progress: progress, fail: cancel, came: make(chan struct{}, 1)}
	m.f.Think(func(*plan.Member) { w.order = m.rs.Load().peers.Mind.Order() })
	if err := w.ask(ctx); err != nil {
		cancel(err)
	}
	w.landing.Wait()
	m.f.Think(func(*plan.Member) { w.order.End() })
	if err := context.Cause(ctx); err != nil {
		return m.why(err)
	}
	return m.kept(ctx)
}

// kept fails with ErrNoSpace when the cache lacks chunks of the image.
func (m *Image) kept(ctx context.Context) error {
	lacks, all := 0, 0
	for n := range m.rs.Load().shape.Leaves() {
		runs, here, err := m.missing(ctx, n)
		if err != nil {
			return err
		}
		all += len(here)
		for _, run := range runs {
			lacks += len(run.Objects)
		}
	}
	if lacks > 0 {
		return fmt.Errorf("%w: %d of %d chunks could not be kept: the cache is full; raise its quota, make room on the disk, or unpin something", content.ErrNoSpace, lacks, lacks+all)
	}
	return nil
}

// warming is one Warm.
type warming struct {
	m       *Image
	size    int64                   // of a chunk
	fail    context.CancelCauseFunc // the first failure ends it
	came    chan struct{}           // that a part has, lately
	landing sync.WaitGroup
	order   *plan.Order // of *part; used within Think

	mu       sync.Mutex // held while progress is called
	progress func(Source, int)
}

// part is what is asked for at once: a run, or what of one fits into the window.
type part struct {
	objects []object.Object
	flights []*flight
}

func (w *warming) report(s Source, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress(s, n)
}

// ask asks for all that is missing, as it can be had.
func (w *warming) ask(ctx context.Context) error {
	leaf, leaves := uint64(0), w.m.rs.Load().shape.Leaves()
	for {
		var next *plan.Ordered
		var left int
		wants := false
		w.m.f.Think(func(*plan.Member) {
			if wants = leaf < leaves && w.order.Wants(time.Now()); wants {
				return
			}
			if leaf == leaves {
				w.order.Whole()
			}
			next, left = w.order.Next(time.Now()), w.order.Left()
		})
		switch {
		case wants:
			if err := w.choose(ctx, leaf); err != nil {
				return err
			}
			leaf++
		case next != nil:
			p := next.Of.(*part)
			how := w.m.by(exchange.PriorityPrefetch)
			how.ask = next.Ask
			flights := w.m.f.join(w.m.rs.Load(), p.objects, how)
			w.m.f.Think(func(*plan.Member) { p.flights = flights })
			w.landing.Go(func() { w.land(ctx, next, flights) })
		case left == 0:
			return nil
		default:
			select {
			case <-w.came:
			case <-time.After(plan.SettleLook):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// choose puts what a map node names, and is not here, into the order.
func (w *warming) choose(ctx context.Context, leaf uint64) error {
	runs, here, err := w.m.missing(ctx, leaf)
	if err != nil {
		return err
	}
	cached := 0
	for _, raw := range here {
		cached += int(raw)
	}
	if cached > 0 {
		w.report(FromCache, cached)
	}
	for _, run := range runs {
		for objects := range slices.Chunk(run.Objects, int(max(1, warmPart/w.size))) {
			w.m.f.Think(func(*plan.Member) { // each by itself: guests wait for no long list
				w.order.Add(object.RunKey(objects[0].At.Run()), objects[len(objects)-1].Pos.Index, &part{objects: objects})
			})
		}
	}
	return nil
}

// land waits for a part, and has the last ones asked of a second member.
func (w *warming) land(ctx context.Context, o *plan.Ordered, flights []*flight) {
	for _, fl := range flights {
		err := fl.waitKept(ctx)
		if err != nil && ctx.Err() == nil { // another head may say where it lies
			how := w.m.by(exchange.PriorityPrefetch)
			err = w.m.strictly(ctx, func() error {
				return w.m.byHeads(ctx, func(rs *rootState) error {
					o, _, err := w.m.f.chunk(ctx, rs, fl.obj.Pos.Index, how)
					if err == nil {
						fl = w.m.f.join(rs, []object.Object{o}, how)[0]
						err = fl.waitKept(ctx)
					}
					return err
				})
			})
		}
		if err != nil {
			w.fail(err)
		} else {
			w.m.count(fl)
			w.report(fl.from, len(fl.data.Bytes()))
		}
	}
	var last []*flight
	w.m.f.Think(func(*plan.Member) {
		for _, other := range w.order.Came(o) {
			last = append(last, other.Of.(*part).flights...)
		}
	})
	select {
	case w.came <- struct{}{}:
	default: // ask is about to look anyway
	}
	for i, fl := range last {
		if i == 0 || fl.job != last[i-1].job {
			fl.job.tell(plan.Event{Kind: plan.Endgame})
		}
	}
}

// strictly tries again and again what the origin is not asked for.
func (m *Image) strictly(ctx context.Context, try func() error) error {
	if m.strict == "" {
		return try()
	}
	return patience.Few(ctx, strictTries, plan.Again, func(err error) bool { return !mayCome(err) }, try)
}

// missing returns what the cache lacks of the chunks that a leaf names, by run, and how
// long those are that are here.
func (m *Image) missing(ctx context.Context, leaf uint64) (runs []Part, here []uint32, err error) {
	var n *mapNode
	err = m.strictly(ctx, func() (err error) {
		n, err = m.leaf(ctx, leaf, m.by(exchange.PriorityPrefetch))
		return err
	})
	if err != nil || n == nil {
		return nil, nil, err
	}
	parts := object.Parts{}
	for i := range n.Node.Entries {
		o, ok := n.Chunk(leaf*content.MapFanout+uint64(i), m.rs.Load().reach())
		if !ok {
			continue
		}
		if m.f.cfg.Cache.Has(o.ID) {
			here = append(here, o.At.Raw)
			continue
		}
		parts.Add(o)
	}
	return parts.All, here, nil
}
