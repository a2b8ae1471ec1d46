package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

// job brings in flights of one run: it carries out what the planner decides.
type job struct {
	f       *Fetcher
	rs      *rootState
	run     pack.Run
	how     request
	flights []*flight // of one level
	ctx     context.Context
	cancel  context.CancelCauseFunc
	events  chan plan.Event
	work    sync.WaitGroup // the asks that are under way
	landed  chan struct{}  // closed when all flights have ended
	open    int            // those that have not; guarded by the Fetcher's mu
	failure error          // of the origin; set before the event that tells fly
}

// eventsMax is more events than a job can have under way: an ask, a read, a wait,
// its start and a tick.
const eventsMax = 8

// newJob is called with the Fetcher's mu.
func newJob(f *Fetcher, rs *rootState, run pack.Run, how request) *job {
	j := &job{f: f, rs: rs, run: run, how: how, events: make(chan plan.Event, eventsMax), landed: make(chan struct{})}
	j.ctx, j.cancel = context.WithCancelCause(f.ctx)
	return j
}

// fly climbs the ladder until all flights have landed or every source was tried.
func (j *job) fly() {
	defer j.work.Wait()
	defer j.cancel(nil)
	timeout := time.AfterFunc(jobTimeout, func() { j.cancel(fmt.Errorf("%w: nothing came for %s", content.ErrUnavailable, jobTimeout)) })
	defer timeout.Stop()
	if j.fromCache(); len(j.left()) == 0 { // another flight may have landed since the caller looked
		return
	}
	j.rs.peers.want(j.rs)
	if j.await(j.underWay()); len(j.left()) == 0 {
		return
	}
	guest := j.how.priority == exchange.PriorityGuest && j.how.from == ""
	var hung <-chan time.Time
	if guest {
		tick := time.NewTicker(plan.HedgeAfter)
		defer tick.Stop()
		hung = tick.C
	}
	p := plan.New(plan.Config{
		Key: runKey(j.run), Self: plan.Peer(j.f.cfg.Self), Farm: j.f.cfg.Identity.Farm, Depth: j.how.depth,
		From: j.how.from, FromFarm: j.how.fromFarm, Guest: guest, Hurry: j.how.priority == exchange.PriorityGuest,
	})
	for e := (plan.Event{Kind: plan.Start}); ; {
		if !j.step(p, e) {
			return
		}
		select {
		case e = <-j.events:
		case <-hung:
			e = plan.Event{Kind: plan.Hung}
		case <-j.landed:
			j.linger()
			return
		case <-j.ctx.Done():
			j.fail(fmt.Errorf("%s: %w", j.what(), context.Cause(j.ctx)))
			return
		}
	}
}

// lingerMax is how long the ask that brought the last bytes may take to end by
// itself: to cancel it would cost more.
const lingerMax = 100 * time.Millisecond

// linger lets what is under way end.
func (j *job) linger() {
	wait := time.NewTimer(lingerMax)
	defer wait.Stop()
	select {
	case <-j.events:
	case <-wait.C:
	case <-j.ctx.Done():
	}
}

// step tells the planner of an event and does what it says; false at the end.
func (j *job) step(p *plan.Job, e plan.Event) bool {
	left := j.left()
	e.Missing = len(left) > 0
	need := 0
	for _, fl := range left {
		need += fl.obj.stored()
	}
	e.View = j.f.view(j.rs, indexes(left), j.level(), need)
	for _, a := range p.Step(e) {
		switch a.Kind {
		case plan.Ask:
			j.work.Go(func() { j.ask(a) })
		case plan.ReadOrigin:
			j.work.Go(func() { j.readOrigin(a.Hedge) })
		case plan.WaitFarm:
			j.work.Go(func() { j.wait(plan.FarmWait, j.rs.peers.nearSettled) })
		case plan.WaitSwarm:
			j.work.Go(func() { j.wait(plan.SwarmWait, nil) })
		case plan.Done:
			return false
		case plan.Fail:
			j.fail(j.f.triedError(j.what(), a.Tried, j.failure))
			return false
		}
	}
	return true
}

// wait waits for a while, or until settled, which may be nil and else says when to
// ask it again.
func (j *job) wait(most time.Duration, settled func() (<-chan struct{}, bool)) {
	wait := time.NewTimer(most)
	defer wait.Stop()
	for waiting := true; waiting; {
		var again <-chan struct{}
		if settled != nil {
			if at, ok := settled(); ok {
				break
			} else {
				again = at
			}
		}
		select {
		case <-again:
			continue
		case <-wait.C:
		case <-j.ctx.Done():
		}
		waiting = false
	}
	j.events <- plan.Event{Kind: plan.Waited}
}

// fail ends the flights that have not landed.
func (j *job) fail(err error) {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	for _, fl := range j.flights {
		j.f.finish(fl, arrival{}, nil, err)
	}
}

func (j *job) what() string {
	if len(j.flights) == 1 {
		return fmt.Sprintf("fetch %s of root %s", j.flights[0].obj.pos, j.rs.id)
	}
	return fmt.Sprintf("fetch %s and %d more of root %s", j.flights[0].obj.pos, len(j.flights)-1, j.rs.id)
}

func (j *job) level() int { return j.flights[0].obj.pos.Level }

// left are the flights that have not landed.
func (j *job) left() []*flight {
	var out []*flight
	for _, fl := range j.flights {
		if !fl.ended.Load() {
			out = append(out, fl)
		}
	}
	return out
}

// indexes of flights, rising.
func indexes(flights []*flight) []uint64 {
	out := make([]uint64, len(flights))
	for i, fl := range flights {
		out[i] = fl.obj.pos.Index
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// fromCache lands what the cache holds.
func (j *job) fromCache() {
	for _, fl := range j.left() {
		if !j.f.cached(fl.obj) {
			continue
		}
		a := arrival{obj: fl.obj, from: FromCache}
		var err error
		if a.data, err = j.f.cfg.Cache.Get(fl.obj.id, nil); err != nil {
			continue
		}
		if fl.obj.pos.Level > 0 {
			if a.page, err = j.f.cfg.Cache.Get(fl.obj.page, nil); err != nil {
				continue
			}
		}
		if err := j.f.land(j.rs, a, fl); err != nil {
			j.f.cfg.Log.Warn("a map node in the cache can't be used", "err", err)
		}
	}
}

// outcome is how an ask ended.
type outcome struct {
	err     error
	unknown bool
	lied    bool
	useless error // why what came, though no lie, is of no use here
	some    bool  // something of use came
	refer   peer.ID
}

// retryWithin is how soon a connection must have failed to be tried once more: two
// members that call each other at once may both fail, and a member that is gone
// refuses at once.
const retryWithin = 500 * time.Millisecond

// ask sends a request to a member, introduces the root if the member has not met
// it, and reports what came of it.
func (j *job) ask(a plan.Action) {
	to := peer.ID(a.Peer)
	begun := time.Now()
	o := j.want(to, a)
	if errors.Is(o.err, exchange.ErrDisconnected) && !o.some && time.Since(begun) < retryWithin {
		o = j.want(to, a)
	}
	if envelope := j.rs.sealed(); o.unknown && len(envelope) > 0 && j.f.cfg.Exchange.Introduce(j.ctx, to, envelope) == nil {
		o = j.want(to, a)
	}
	e := plan.Event{Kind: plan.Answered, Peer: a.Peer, Refer: plan.Peer(o.refer)}
	switch {
	case errors.Is(o.err, exchange.ErrViolation):
		j.f.lied(to, o.err.Error())
		e.Why = o.err.Error()
	case o.lied:
		e.Why = "sent wrong bytes"
	case o.useless != nil && !o.some:
		e.Why = o.useless.Error()
	case o.err != nil:
		e.Why = o.err.Error()
		j.f.cfg.Log.Debug("a member was asked in vain", "peer", to, "err", o.err)
		if j.ctx.Err() == nil && !errors.Is(o.err, exchange.ErrBusy) {
			j.f.failed(to)
		}
	case o.unknown:
		e.Why = "does not know the root"
	default:
		j.f.worked(to)
		if o.some && a.Fetch && a.Passed && j.f.cfg.Origin() == nil {
			j.f.habits.provided(a.Peer)
		}
	}
	j.events <- e
}

func (j *job) want(to peer.ID, a plan.Action) (o outcome) {
	left := j.left()
	if len(left) == 0 {
		return o
	}
	if j.f.cfg.Exchange == nil {
		return outcome{err: errors.New("this node asks nobody")}
	}
	ctx, cancel := context.WithCancel(j.ctx)
	defer cancel()
	byIndex := map[uint64]*flight{}
	for _, fl := range left {
		byIndex[fl.obj.pos.Index] = fl
	}
	source := FromSwarm
	if j.f.isNear(to) {
		source = FromFarm
	}
	req := exchange.Request{Root: j.rs.id, Level: j.level(), Indexes: indexes(left), Priority: j.how.priority, Fetch: a.Fetch, Passed: a.Passed}
	o.err = j.f.cfg.Exchange.Want(ctx, to, req, func(r exchange.Reply) {
		switch r := r.(type) {
		case *exchange.Data:
			fl := byIndex[r.Index]
			if fl == nil || fl.ended.Load() {
				return
			}
			switch lie, err := j.receive(fl, source, r); {
			case lie:
				o.lied = true
				j.f.lied(to, err.Error())
				cancel()
			case err != nil:
				o.useless = err
			default:
				o.some = true
			}
		case exchange.Absent:
			if j.level() == 0 {
				j.rs.peers.lacks(to, r.Indexes)
			}
		case exchange.Unknown:
			o.unknown = true
		case exchange.Refer:
			o.refer = r.Peer
		}
	})
	return o
}

// errOtherPage says that a member has a map node with another page: the same content
// was imported twice, into packs of its own each time. It is no lie.
var errOtherPage = errors.New("has the same content in other packs")

// receive checks what a member sent and lands it. It is a lie when it is not the
// object that was asked for; a map node that can't be used is its maker's fault.
func (j *job) receive(fl *flight, from Source, r *exchange.Data) (lie bool, err error) {
	a := arrival{obj: fl.obj, from: from}
	if a.data, err = content.Verify(fl.obj.id, r.Body); err != nil {
		return true, err
	}
	if fl.obj.pos.Level > 0 {
		if a.page, err = content.Verify(fl.obj.page, r.Page); err != nil {
			return false, errOtherPage
		}
	}
	r.Take()
	j.f.count(from, len(r.Body)+len(r.Page))
	return false, j.f.land(j.rs, a, fl)
}
