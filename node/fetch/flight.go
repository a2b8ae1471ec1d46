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

// onItsWay is an object that is under way, and the read of the origin that brings it in,
// if there is one. It is used with the Fetcher's mu.
type onItsWay struct {
	plan.Object
	read *read
}

// onWay returns what is under way of an object; settle forgets it with the last.
func (f *Fetcher) onWay(key objectKey) *onItsWay {
	o := f.objects[key]
	if o == nil {
		o = new(onItsWay)
		f.objects[key] = o
	}
	return o
}

func (f *Fetcher) settle(key objectKey) {
	if o := f.objects[key]; o != nil && o.Idle() {
		delete(f.objects, key)
	}
}

// flight is one object on its way.
type flight struct {
	*plan.Flight
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
			f.settle(fl.obj.key())
		}
		j.cancel(errUnwanted)
	}
}

// join returns a flight for each object: one under way, or a new one. New ones
// are grouped by run, and each group begins a job. Each flight is to be waited
// for or left.
func (f *Fetcher) join(rs *rootState, objects []object, how request) []*flight {
	out := make([]*flight, len(objects))
	byRun := map[pack.Run][]int{}
	for i, o := range objects {
		byRun[o.at.Run()] = append(byRun[o.at.Run()], i)
	}
	var begun []*job
	stopped := false
	f.think(func(m *plan.Member) {
		stopped = f.ctx.Err() != nil
		for run, places := range byRun {
			wanted := make([]plan.Wanted, len(places))
			for i, place := range places {
				o := objects[place]
				wanted[i] = plan.Wanted{Object: &f.onWay(o.key()).Object, Index: o.pos.Index, Size: o.stored()}
			}
			flights, climb := m.Join(rs.wants(run, objects[places[0]].pos.Level, how), wanted)
			j := newJob(f, rs, run, how, climb)
			for i, fl := range flights {
				if fl.Of == nil {
					own := &flight{Flight: fl, obj: objects[places[i]], job: j, done: make(chan struct{})}
					fl.Of = own
					j.flights = append(j.flights, own)
				}
				out[places[i]] = fl.Of.(*flight)
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
		Key: runKey(run), Root: rs.peers.Mind, Level: level, Depth: how.depth,
		From: how.from, FromFarm: how.fromFarm, Guest: hurry && how.from == "", Hurry: hurry,
	}
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
	if o := f.objects[a.obj.key()]; o != nil {
		for fl := range o.Flights {
			f.finish(fl.Of.(*flight), a, node, nil)
		}
	}
	return nil
}

// finish ends a flight. It is called with mu.
func (f *Fetcher) finish(fl *flight, a arrival, node *mapNode, err error) {
	last, ok := fl.End()
	f.settle(fl.obj.key())
	if !ok {
		return
	}
	fl.data, fl.page, fl.from, fl.node, fl.err = a.data, a.page, a.from, node, err
	fl.ended.Store(true)
	close(fl.done)
	if last {
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
