package fetch

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

var (
	errStopped = errors.New("the node is stopping")
	// errUnwanted ends a flight that nobody waits for any more.
	errUnwanted = errors.New("nobody wants it any more")
)

// flightKey names a flight. Flights of one object at different depths are apart,
// so that nodes never wait for each other; see plan.Depth.
type flightKey struct {
	objectKey
	depth plan.Depth
}

// flight is one object on its way. It is joined until its bytes have been written to
// the cache too, or could not be: then they are there, or it is fetched again.
type flight struct {
	key  flightKey
	obj  object
	job  *job
	kept chan struct{} // closed when it is joined no more
	done chan struct{} // closed when it has ended; what follows is set before
	data content.Verified
	page content.Verified // of a map node
	node *mapNode         // of a map node
	from Source
	err  error

	ended   atomic.Bool // set under the Fetcher's mu
	counted atomic.Bool // by an image, of those that waited for it
	waiters int         // guarded by the Fetcher's mu, as is
	read    bool        // somebody who joined looks at the bytes
}

// wait waits for the end of a flight that join returned. It is called once; a
// caller that does not call it calls leave.
func (fl *flight) wait(ctx context.Context) (content.Verified, error) {
	select {
	case <-fl.done:
		return fl.data, fl.err
	case <-ctx.Done():
		fl.job.f.leave(fl)
		return content.Verified{}, context.Cause(ctx)
	}
}

// aheadPatience is how long a guest waits for what was asked for ahead of it while no
// bytes come: a few chunks' time on the slowest link of use to it.
const aheadPatience = 300 * time.Millisecond

// flows waits, for a guest, until a flight has ended; false when it is less urgent and
// nothing comes by its job for aheadPatience. Then guests join none of its flights.
func (fl *flight) flows(ctx context.Context) bool {
	for seen := int64(-1); fl.job.how.priority < exchange.PriorityGuest && !fl.ended.Load() && ctx.Err() == nil; {
		came := fl.job.came.Load()
		if came == seen {
			fl.job.slow.Store(true)
			return false
		}
		seen = came
		select {
		case <-fl.done:
		case <-ctx.Done():
		case <-time.After(aheadPatience):
		}
	}
	return true
}

// waitKept is wait for who wants the bytes in the cache and does not look at them.
func (fl *flight) waitKept(ctx context.Context) error {
	if _, err := fl.wait(ctx); err != nil {
		return err
	}
	<-fl.kept // the disk's time
	return nil
}

// leave gives up waiting. A job that nobody waits for is ended, unless a guest
// wanted it: a guest asks again.
func (f *Fetcher) leave(flights ...*flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range flights {
		fl.waiters--
	}
	waited := func(fl *flight) bool { return fl.waiters > 0 && !fl.ended.Load() }
	for _, fl := range flights {
		j := fl.job
		if fl.ended.Load() || j.how.priority == exchange.PriorityGuest || slices.ContainsFunc(j.flights, waited) {
			continue
		}
		for _, other := range j.flights { // nobody may join them any more
			if f.flights[other.key] == other {
				delete(f.flights, other.key)
			}
		}
		j.cancel(errUnwanted)
	}
}

// join returns a flight for each object: one under way, or a new one. New ones
// are grouped by run, and each group begins a job. Each flight is to be waited
// for or left.
func (f *Fetcher) join(rs *rootState, objects []object, how request) []*flight {
	depths := f.depths(objects, how)
	out := make([]*flight, len(objects))
	jobs := map[pack.Run]*job{}
	f.mu.Lock()
	stopped := f.ctx.Err() != nil
	for i, o := range objects {
		run := o.at.Run()
		key := flightKey{o.key(), depths[run]}
		fl := f.underway(key, how.priority)
		if fl == nil {
			j := jobs[run]
			if j == nil {
				how.depth = depths[run]
				j = newJob(f, rs, run, how)
				jobs[run] = j
			}
			fl = &flight{key: key, obj: o, job: j, kept: make(chan struct{}), done: make(chan struct{})}
			j.flights = append(j.flights, fl)
			f.flights[fl.key] = fl
		}
		fl.waiters++
		fl.read = fl.read || how.priority == exchange.PriorityGuest || how.from != ""
		out[i] = fl
	}
	for _, j := range jobs {
		j.open = len(j.flights)
		if !stopped {
			f.running.Go(j.fly)
		}
	}
	f.mu.Unlock()
	if stopped {
		for _, j := range jobs {
			j.cancel(errStopped)
			j.fail(errStopped)
		}
	}
	return out
}

// depths says how deep the request is for each run: where this node leads, what
// it wants itself is what others ask it for.
func (f *Fetcher) depths(objects []object, how request) map[pack.Run]plan.Depth {
	out := map[pack.Run]plan.Depth{}
	var live []plan.Peer
	for _, o := range objects {
		run := o.at.Run()
		if _, ok := out[run]; ok {
			continue
		}
		out[run] = how.depth
		if how.depth > plan.Own {
			continue
		}
		if live == nil {
			live = f.live()
		}
		if plan.Lead(runKey(run), live) == plan.Peer(f.cfg.Self) {
			out[run] = plan.Led
		}
	}
	return out
}

// underway returns a flight that a request may join: one that has landed, or is as deep
// or deeper, and where a guest waits as urgent, or asked for ahead of it and coming. It is
// called with mu.
func (f *Fetcher) underway(key flightKey, p exchange.Priority) *flight {
	least := key.depth
	for key.depth = 0; int(key.depth) < plan.Depths; key.depth++ {
		fl := f.flights[key]
		if fl == nil || key.depth < least && !fl.ended.Load() {
			continue
		}
		if fl.ended.Load() || p < exchange.PriorityGuest || fl.job.how.priority >= exchange.PriorityReadahead && !fl.job.slow.Load() {
			return fl
		}
	}
	return nil
}

// arrival is an object that has come.
type arrival struct {
	obj  object
	data content.Verified
	page content.Verified // of a map node
	node *mapNode         // of a map node
	from Source
	lent *exchange.Data // what data lies in, if that is to be given back
}

// land ends the flights that wait for an object, at any depth, and keeps it; a chunk is
// kept then, as who waits for it does not wait for the disk. own is a flight that may be
// hidden by a more urgent one, or nil. Without room in the cache the object is handed on
// all the same.
func (f *Fetcher) land(rs *rootState, a arrival, own *flight) error {
	if a.obj.pos.Level > 0 {
		node, err := f.decodeNode(rs, a.obj.pos, a)
		if err != nil {
			return err
		}
		f.keep(rs, a.page, a)
		f.keep(rs, a.data, a)
		f.nodes.Keep(&rs.nodes, nodeKey(a.obj.pos), node)
		a.node, a.lent = node, nil // it lies in the bytes
	}
	landed := f.finish(a, own)
	if a.node == nil {
		f.keep(rs, a.data, a)
		f.show(rs, a.obj)
	}
	f.mu.Lock()
	for _, fl := range landed {
		if fl.read {
			a.lent = nil
		}
		f.leaveOut(fl)
	}
	f.mu.Unlock()
	if a.lent != nil {
		a.lent.Free()
	}
	return nil
}

// finish ends the flights of an object that have not, and returns them.
func (f *Fetcher) finish(a arrival, own *flight) []*flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	flights := []*flight{own}
	for d := range plan.Depth(plan.Depths) {
		flights = append(flights, f.flights[flightKey{a.obj.key(), d}])
	}
	return slices.DeleteFunc(flights, func(fl *flight) bool { return fl == nil || !f.end(fl, a, nil) })
}

// end ends a flight, unless it has. It is called with mu.
func (f *Fetcher) end(fl *flight, a arrival, err error) bool {
	if fl.ended.Swap(true) {
		return false
	}
	fl.data, fl.page, fl.from, fl.node, fl.err = a.data, a.page, a.from, a.node, err
	close(fl.done)
	if fl.job.open--; fl.job.open == 0 {
		close(fl.job.landed)
	}
	return true
}

// leaveOut has nobody join a flight any more that has ended. It is called with mu.
func (f *Fetcher) leaveOut(fl *flight) {
	if f.flights[fl.key] == fl {
		delete(f.flights, fl.key)
	}
	close(fl.kept)
}

// show notes a chunk that has landed in the bitmaps of its root, by whatever head.
func (f *Fetcher) show(rs *rootState, o object) {
	reach, ok := f.cfg.Cache.Reach(o.id)
	f.mu.Lock()
	heads := slices.Collect(f.roots.Of(rs.id))
	f.mu.Unlock()
	for _, head := range append(heads, rs) {
		if ok && reach >= head.reach() {
			head.here.Add(o.pos.Index)
		}
	}
}

// keep puts bytes of an arrival into the cache, if there is room and they are not from
// there. They were obtained for its reach, which the root has had.
func (f *Fetcher) keep(rs *rootState, v content.Verified, a arrival) {
	reach := a.obj.reach
	if len(v.Bytes()) == 0 || a.from == FromCache {
		return
	}
	if err := f.cfg.Cache.Put(v, min(reach, rs.reach())); err != nil && !errors.Is(err, content.ErrNoSpace) {
		f.cfg.Log.Debug("a chunk is not kept", "err", err)
	}
	if now := rs.reach(); now < reach { // its record has ended meanwhile
		if err := f.cfg.Cache.Narrow([]content.CID{v.CID()}, now); err != nil {
			f.cfg.Log.Debug("a chunk is not narrowed", "err", err)
		}
	}
}
