package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/wire"
)

// read is one request to the origin that is under way. It waits for nobody, so
// everybody may wait for it.
type read struct {
	done chan struct{} // closed when it has ended; err is set before
	err  error
	turn *budget.Turn // of the most urgent who waits for it, on behalf of who began it
}

// urgency is how urgent the origin is asked for a request.
func (r request) urgency() budget.Class {
	return [wire.Priorities]budget.Class{budget.Seeding, budget.Prefetch, budget.Ahead, budget.Needed}[r.priority]
}

// readOrigin reads what is missing, and with it, unless a guest waits, all other chunks
// of the run that the root has and the cache lacks: a guest that goes on there has
// readahead read the run, and one that doesn't would wait for it in vain. What is being
// read already is waited for, so a chunk is never read twice at once.
func (j *job) readOrigin(hedge bool) {
	e := plan.Event{Kind: plan.OriginEnded}
	if hedge {
		j.f.tally.Hedges.Inc()
	}
	if err := j.readMissing(hedge); err != nil {
		e.Why, e.Never = err.Error(), !errors.Is(err, content.ErrUnavailable) && (errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrNotFound))
		j.failure = err
	}
	if hedge && slices.ContainsFunc(j.flights, func(fl *flight) bool { return fl.ended.Load() && fl.from == FromOrigin }) {
		j.f.tally.HedgeWins.Inc()
	}
	j.tell(e)
}

func (j *job) readMissing(hedge bool) error {
	origin := j.f.cfg.Origin()
	if origin == nil {
		return fmt.Errorf("%w: not reachable from this node", content.ErrUnavailable)
	}
	mine, under := j.claim(hedge)
	if len(mine) > 0 {
		r := under[len(under)-1]
		if hedge {
			n := 0
			for _, o := range mine {
				n += o.Stored()
			}
			j.f.Think(func(m *plan.Member) { m.Spend(j.f.cfg.Now(), int64(n)) })
		}
		if !j.f.start(func() { j.f.readObjects(j.rs, origin, mine, r) }) {
			j.f.readObjects(j.rs, origin, mine, r) // ends at once: the Fetcher's context has
		}
	}
	err := j.await(j.ctx, under)
	j.fromCache() // what a read brought that ended before this one was claimed
	return err
}

// readsOf returns the reads that bring in flights, which become as urgent as the job. Called
// with mu.
func (j *job) readsOf(flights []*flight) []*read {
	var out []*read
	for _, fl := range flights {
		if o := j.f.objects[fl.obj.Key()]; o != nil && o.read != nil && !slices.Contains(out, o.read) {
			o.read.turn.Raise(j.how.urgency())
			out = append(out, o.read)
		}
	}
	return out
}

// await waits for reads, or until all flights of this job have landed.
func (j *job) await(ctx context.Context, reads []*read) error {
	var errs []error
	for _, r := range reads {
		select {
		case <-r.done:
			errs = append(errs, r.err)
		case <-j.landed:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return errors.Join(errs...)
}

// claim takes what this job is to read, if anything, and returns the reads to wait
// for: those under way, and last its own, which the caller is to start. A read puts
// what it brings into the cache before it gives up its claims, so what is neither
// claimed nor in the cache is to be read.
func (j *job) claim(hedge bool) (mine []object.Object, under []*read) {
	var more []object.Object
	switch bulk := j.level() == 0 && !hedge && j.how.priority != exchange.PriorityGuest && !j.f.cfg.Cache.Full(); { // which would not keep them
	case bulk && j.how.list != nil:
		more = j.how.list.Also
	case bulk:
		more = j.neighbours()
	}
	left := j.left()
	f := j.f
	f.mu.Lock()
	defer f.mu.Unlock()
	under = j.readsOf(left)
	r := &read{done: make(chan struct{}), turn: budget.NewTurn(j.how.urgency(), string(j.how.from))}
	take := func(o object.Object) {
		if way := f.onWay(o.Key()); way.read == nil && !f.cached(o) {
			way.read, way.Reading = r, true
			mine = append(mine, o)
			if o.Pos.Level == 0 && j.rs.peers.Mind.Shown(o.Pos.Index) {
				f.tally.Avoidable.Add(int64(o.Stored()))
			}
		}
		f.settle(o.Key())
	}
	for _, fl := range left {
		take(fl.obj)
	}
	if len(mine) == 0 {
		return nil, under
	}
	for _, o := range more {
		if j.how.list == nil || f.mind.Leads(object.RunKey(o.At.Run())) {
			take(o)
		}
	}
	slices.SortFunc(mine, func(a, b object.Object) int { return cmp.Compare(a.At.Offset, b.At.Offset) })
	return mine, append(under, r)
}

// cached reports whether an object, with its page, is in the cache and goes as far
// as it is fetched for. Flights never land what does not: others may wait for them.
func (f *Fetcher) cached(o object.Object) bool {
	return f.cfg.Cache.HasFor(o.ID, o.Reach) && (o.Pos.Level == 0 || f.cfg.Cache.HasFor(o.Page, o.Reach))
}

// neighbours are the chunks of the run that the leaf of the wanted ones names.
func (j *job) neighbours() []object.Object {
	up, _ := j.flights[0].obj.Pos.Parent()
	leaf := j.rs.nodes.Peek(object.MapKey(up))
	if leaf == nil {
		return nil
	}
	reach := j.flights[0].obj.Reach
	met := map[content.CID]bool{}
	for _, fl := range j.flights {
		met[fl.obj.ID] = true
	}
	var out []object.Object
	for i := range leaf.Page.Len() {
		if o, ok := leaf.Chunk(up.Child(i).Index, reach); ok && o.At.Run() == j.run && !met[o.ID] {
			met[o.ID] = true
			out = append(out, o)
		}
	}
	return out
}

func (f *Fetcher) readObjects(rs *rootState, origin Origin, objects []object.Object, r *read) {
	ctx, cancel := context.WithTimeout(budget.With(f.ctx, r.turn), readTimeout)
	defer cancel()
	var parts sync.WaitGroup
	errs := make([]error, len(objects)) // each counts: one that is not for ever keeps the others from being so
	for begin, i := 0, 1; i <= len(objects); i++ {
		if i == len(objects) || objects[i].At.Offset > objects[i-1].At.End()+gapMax {
			part, err := objects[begin:i], &errs[begin]
			parts.Go(func() { *err = f.readPart(ctx, rs, origin, part) })
			begin = i
		}
	}
	parts.Wait()
	r.err = errors.Join(errs...)
	f.mu.Lock()
	for _, o := range objects {
		way := f.onWay(o.Key())
		way.read, way.Reading = nil, false
		f.settle(o.Key())
	}
	f.mu.Unlock()
	close(r.done)
}

// gapMax is how many bytes between two objects are read with them, as one request: what
// is longer was read by another, or is here, and comes once.
const gapMax = content.ChunkSizeDefault / 2

// readPart is readObjects of one request. What has come lands: no guest waits for the rest.
func (f *Fetcher) readPart(ctx context.Context, rs *rootState, origin Origin, objects []object.Object) error {
	extents, of := []pack.Extent{}, []int{} // of which object each is
	for i, o := range objects {
		for _, e := range o.Frames() {
			extents, of = append(extents, e), append(of, i)
		}
	}
	arrived, unfit := make([]arrival, len(objects)), error(nil) // a map node that can't be used
	err := pack.StreamMoved(ctx, origin, extents, func(i int, v content.Verified) {
		o, a := objects[of[i]], &arrived[of[i]]
		a.obj, a.from, a.free = o, FromOrigin, func() { origin.Free(v) }
		if i > 0 && of[i-1] == of[i] {
			a.page = v
		} else {
			a.data = v
		}
		if a.data.Bytes() == nil || o.Pos.Level > 0 && a.page.Bytes() == nil {
			return
		}
		rs.count(FromOrigin, o.Stored())
		f.mu.Lock()
		f.mind.Count(f.cfg.Now(), int64(o.Stored()))
		f.mu.Unlock()
		unfit = errors.Join(unfit, f.land(rs, *a, nil))
		*a = arrival{}
	})
	f.cfg.Log.Debug("read the origin", "run", object.RunKey(objects[0].At.Run()), "objects", len(objects), "err", err)
	return errors.Join(err, unfit)
}
