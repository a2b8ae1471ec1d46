package fetch

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/node/fetch/object"
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

// onItsWay is an object that is under way, and the read of the origin that brings it in,
// if there is one. It is used with the Fetcher's mu.
type onItsWay struct {
	plan.Object
	read *read
}

// onWay returns what is under way of an object; settle forgets it with the last.
func (f *Fetcher) onWay(key object.Key) *onItsWay {
	o := f.objects[key]
	if o == nil {
		o = new(onItsWay)
		f.objects[key] = o
	}
	return o
}

func (f *Fetcher) settle(key object.Key) {
	if o := f.objects[key]; o != nil && o.Idle() {
		delete(f.objects, key)
	}
}

// flight is one object on its way. It is joined until its bytes have been written to
// the cache too, or could not be: then they are there, or it is fetched again.
type flight struct {
	*plan.Flight
	obj  object.Object
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
	read    bool        // somebody who joined looks at the bytes; guarded by the Fetcher's mu
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

// aheadPatience is how long a guest waits for readahead that brings nothing: a few chunks' time.
const aheadPatience = 300 * time.Millisecond

// flows waits, for a guest, until a flight has ended; false when it is less urgent and
// nothing comes by its job for aheadPatience. Then guests join none of its flights.
func (fl *flight) flows(ctx context.Context) bool {
	for seen := int64(-1); fl.job.how.priority < exchange.PriorityGuest && !fl.ended.Load() && ctx.Err() == nil; {
		came := fl.job.came.Load()
		if came == seen {
			fl.job.f.Think(func(*plan.Member) { fl.job.climb.Slow = true })
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

// leave gives up waiting; a job that nobody waits for any more is ended.
func (f *Fetcher) leave(flights ...*flight) {
	left := make([]*plan.Flight, len(flights))
	for i, fl := range flights {
		left[i] = fl.Flight
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, unwanted := range f.mind.Leave(left...) {
		j := unwanted.Of.(*job)
		for _, fl := range j.flights { // nobody may join them any more
			f.settle(fl.obj.Key())
		}
		j.cancel(errUnwanted)
	}
}

// join returns a flight for each object: one under way, or a new one. New ones
// are grouped by run, and each group begins a job. Each flight is to be waited
// for or left.
func (f *Fetcher) join(rs *rootState, objects []object.Object, how request) []*flight {
	out := make([]*flight, len(objects))
	byRun := map[pack.Run][]int{}
	for i, o := range objects {
		byRun[o.At.Run()] = append(byRun[o.At.Run()], i)
	}
	var begun []*job
	stopped := false
	f.Think(func(m *plan.Member) {
		stopped = f.ctx.Err() != nil
		for run, places := range byRun {
			wanted := make([]plan.Wanted, len(places))
			for i, place := range places {
				o := objects[place]
				wanted[i] = plan.Wanted{Object: &f.onWay(o.Key()).Object, Index: o.Pos.Index, Size: o.Stored()}
			}
			flights, climb := m.Join(rs.wants(run, objects[places[0]].Pos.Level, how), wanted)
			j := newJob(f, rs, run, how, climb)
			for i, fl := range flights {
				if fl.Of == nil {
					own := &flight{Flight: fl, obj: objects[places[i]], job: j, kept: make(chan struct{}), done: make(chan struct{})}
					fl.Of = own
					j.flights = append(j.flights, own)
				}
				own := fl.Of.(*flight)
				own.read = own.read || how.looks || how.priority == exchange.PriorityGuest || how.from != ""
				out[places[i]] = own
			}
			if j == nil {
				continue
			}
			if begun = append(begun, j); !stopped {
				f.running.Go(j.fly)
			}
		}
	})
	if stopped {
		for _, j := range begun {
			j.cancel(errStopped)
			j.fail(errStopped)
		}
	}
	return out
}

// wants is what the planner is told of a request for a run.
func (rs *rootState) wants(run pack.Run, level int, how request) plan.Config {
	hurry := how.priority == exchange.PriorityGuest
	return plan.Config{
		Key: object.RunKey(run), Root: rs.peers.Mind, Level: level, Depth: how.depth, NoOrigin: how.noOrigin, Ask: how.ask,
		From: how.from, FromFarm: how.fromFarm, Ahead: how.priority == exchange.PriorityReadahead, Guest: hurry && how.from == "", Hurry: hurry,
	}
}

// arrival is an object that has come.
type arrival struct {
	obj  object.Object
	data content.Verified
	page content.Verified // of a map node
	node *mapNode         // of a map node
	from Source
	free func() // gives back what data lies in; nil where it is to stay
}

// land ends the flights that wait for an object, at any depth, and keeps it; a chunk is
// kept then, as who waits for it does not wait for the disk. own is a flight that may be
// hidden by a more urgent one, or nil. Without room in the cache the object is handed on
// all the same.
func (f *Fetcher) land(rs *rootState, a arrival, own *flight) error {
	if a.obj.Pos.Level > 0 {
		node, err := f.decodeNode(rs, a.obj.Pos, a)
		if err != nil {
			return err
		}
		f.keep(rs, a.page, a)
		f.keep(rs, a.data, a)
		f.nodes.Keep(&rs.nodes, object.MapKey(a.obj.Pos), node)
		a.node, a.free = node, nil // it lies in the bytes
	}
	landed := f.finish(a, own)
	if a.node == nil {
		f.keep(rs, a.data, a)
		f.show(rs, a.obj)
	}
	f.mu.Lock()
	for _, fl := range landed {
		if fl.read {
			a.free = nil
		}
		f.leaveOut(fl)
	}
	f.mu.Unlock()
	if a.free != nil {
		a.free()
	}
	return nil
}

// finish ends the flights of an object that have not, and returns them.
func (f *Fetcher) finish(a arrival, own *flight) []*flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	flights := []*flight{own}
	if o := f.objects[a.obj.Key()]; o != nil {
		for fl := range o.Flights {
			flights = append(flights, fl.Of.(*flight))
		}
	}
	return slices.DeleteFunc(flights, func(fl *flight) bool { return fl == nil || !f.end(fl, a, nil) })
}

// end ends a flight, unless it has. It is called with mu.
func (f *Fetcher) end(fl *flight, a arrival, err error) bool {
	last, ok := fl.End()
	if !ok {
		return false
	}
	fl.data, fl.page, fl.from, fl.node, fl.err = a.data, a.page, a.from, a.node, err
	fl.ended.Store(true)
	fl.job.came.Add(1)
	close(fl.done)
	if last {
		close(fl.job.landed)
	}
	return true
}

// leaveOut has nobody join a flight any more that has ended. It is called with mu.
func (f *Fetcher) leaveOut(fl *flight) {
	fl.LeaveOut()
	f.settle(fl.obj.Key())
	close(fl.kept)
}

// show notes a chunk that has landed in the bitmaps of its root, by whatever head.
func (f *Fetcher) show(rs *rootState, o object.Object) {
	reach, ok := f.cfg.Cache.Reach(o.ID)
	for _, head := range append(f.heads(rs.id), rs) {
		if ok && reach >= head.reach() {
			head.here.Add(o.Pos.Index)
		}
	}
}

// keep puts bytes of an arrival into the cache, if there is room and they are not from
// there. They were obtained for its reach, which the root has had.
func (f *Fetcher) keep(rs *rootState, v content.Verified, a arrival) {
	reach := a.obj.Reach
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
