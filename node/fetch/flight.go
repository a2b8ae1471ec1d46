package fetch

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/grangemesh/grange/node/cache"
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

// flight is one object on its way.
type flight struct {
	key  flightKey
	obj  object
	job  *job
	done chan struct{} // closed when it has ended; what follows is set before
	data content.Verified
	page content.Verified // of a map node
	node *mapNode         // of a map node
	from Source
	err  error

	ended   atomic.Bool // set under the Fetcher's mu
	counted atomic.Bool // by an image, of those that waited for it
	waiters int         // guarded by the Fetcher's mu
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

// leave gives up waiting. A job that nobody waits for is ended, unless a guest
// wanted it: a guest asks again.
func (f *Fetcher) leave(flights ...*flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range flights {
		fl.waiters--
	}
	for _, fl := range flights {
		j := fl.job
		if fl.waiters > 0 || fl.ended.Load() || j.how.priority == exchange.PriorityGuest || j.waited() {
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

// waited reports whether anybody waits for a flight of the job. It is called with
// the Fetcher's mu.
func (j *job) waited() bool {
	for _, fl := range j.flights {
		if fl.waiters > 0 && !fl.ended.Load() {
			return true
		}
	}
	return false
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
			fl = &flight{key: key, obj: o, job: j, done: make(chan struct{})}
			j.flights = append(j.flights, fl)
			f.flights[fl.key] = fl
		}
		fl.waiters++
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

// underway returns a flight that a request may join: as deep or deeper, and as
// urgent where a guest waits. It is called with mu.
func (f *Fetcher) underway(key flightKey, p exchange.Priority) *flight {
	for ; int(key.depth) < plan.Depths; key.depth++ {
		fl := f.flights[key]
		if fl != nil && (p < exchange.PriorityGuest || fl.job.how.priority == p) {
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
	from Source
}

// land keeps an object and ends the flights that wait for it, at any depth; own
// is one that may be hidden by a more urgent one, or nil. Without room in the
// cache the object is handed on all the same.
func (f *Fetcher) land(rs *rootState, a arrival, own *flight) error {
	var node *mapNode
	if a.obj.pos.Level > 0 {
		var err error
		if node, err = f.decodeNode(rs, a.obj.pos, a); err != nil {
			return err
		}
	}
	if a.from != FromCache {
		f.keep(rs, a.page, a.obj.reach)
		f.keep(rs, a.data, a.obj.reach)
	}
	if node != nil {
		f.nodes.Keep(&rs.nodes, nodeKey(a.obj.pos), node)
	} else {
		f.show(rs, a.obj)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if own != nil {
		f.finish(own, a, node, nil)
	}
	for d := range plan.Depth(plan.Depths) {
		if fl := f.flights[flightKey{a.obj.key(), d}]; fl != nil {
			f.finish(fl, a, node, nil)
		}
	}
	return nil
}

// finish ends a flight. It is called with mu.
func (f *Fetcher) finish(fl *flight, a arrival, node *mapNode, err error) {
	if f.flights[fl.key] == fl {
		delete(f.flights, fl.key)
	}
	if fl.ended.Swap(true) {
		return
	}
	fl.data, fl.page, fl.from, fl.node, fl.err = a.data, a.page, a.from, node, err
	close(fl.done)
	if fl.job.open--; fl.job.open == 0 {
		close(fl.job.landed)
	}
}

// show notes a chunk that has landed in the bitmaps of its root, by whatever head.
func (f *Fetcher) show(rs *rootState, o object) {
	reach, ok := f.cfg.Cache.Reach(o.id)
	for _, head := range append(f.heads(rs.id), rs) {
		if ok && reach >= head.reach() {
			head.here.Add(o.pos.Index)
		}
	}
}

// keep puts bytes into the cache, if there is room and there are any. They were
// obtained for that reach, which the root has had.
func (f *Fetcher) keep(rs *rootState, v content.Verified, reach cache.Reach) {
	if len(v.Bytes()) == 0 {
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
