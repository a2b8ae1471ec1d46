package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/why"
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
	asks    map[plan.Peer]*asking // the latest of each member; fly's
	work    sync.WaitGroup        // the asks that are under way
	landed  chan struct{}         // closed when all flights have ended
	climb   *plan.Job             // used with the Fetcher's mu
	came    atomic.Int64          // how many flights have ended
	began   time.Time
	trace   *why.Trace // of what is tried; nil where no guest waits
	failure error      // of the origin; set before the event that tells fly
}

// eventsMax is how many events of a job may wait to be looked at: as many as members
// are asked at once, mostly.
const eventsMax = 8

// asking is an ask that is under way.
type asking struct {
	peer   plan.Peer
	ctx    context.Context
	cancel context.CancelFunc
	begun  time.Time
	met    atomic.Bool // something came
}

// newJob carries out a climb, nil for none. It is called with the Fetcher's mu.
func newJob(f *Fetcher, rs *rootState, run pack.Run, how request, climb *plan.Job) *job {
	if climb == nil {
		return nil
	}
	j := &job{f: f, rs: rs, run: run, how: how, events: make(chan plan.Event, eventsMax), asks: map[plan.Peer]*asking{}, landed: make(chan struct{}), climb: climb, began: time.Now(), trace: why.TraceIf(how.span != nil || how.priority >= exchange.PriorityReadahead && how.from == "")}
	j.how.trail = nil
	climb.Of = j
	j.ctx, j.cancel = context.WithCancelCause(f.ctx)
	return j
}

// fly climbs the ladder until all flights have landed or every source was tried.
func (j *job) fly() {
	defer j.work.Wait()
	defer j.cancel(nil)
	if j.fromCache(); len(j.left()) == 0 { // another flight may have landed since the caller looked
		return
	}
	j.rs.peers.Want()
	wake := time.NewTimer(plan.HedgeAfter)
	defer wake.Stop()
	for e := (plan.Event{Kind: plan.Start}); ; {
		next, on := j.step(e)
		if !on {
			return
		}
		wake.Reset(time.Until(next))
		select {
		case e = <-j.events:
		case <-wake.C:
			e = plan.Event{Kind: plan.Woke}
		case <-j.landed:
			j.step(j.linger())
			return
		case <-j.ctx.Done():
			j.fail(fmt.Errorf("%s: %w", j.what(), context.Cause(j.ctx)))
			return
		}
	}
}

// awaitOthers waits for reads of the origin that bring in flights of this job.
func (j *job) awaitOthers() {
	left := j.left()
	j.f.mu.Lock()
	reads := j.readsOf(left)
	j.f.mu.Unlock()
	ctx, cancel := context.WithTimeout(j.ctx, j.climb.ReadingWait())
	defer cancel()
	_ = j.await(ctx, reads) // who comes to read the origin learns of its errors
	j.tell(plan.Event{Kind: plan.Waited})
}

// lingerMax is how long the ask that brought the last bytes may take to end by
// itself: to cancel it would cost more.
const lingerMax = 100 * time.Millisecond

// linger lets what is under way end, and returns how.
func (j *job) linger() plan.Event {
	select {
	case e := <-j.events:
		return e
	case <-time.After(lingerMax):
	case <-j.ctx.Done():
	}
	return plan.Event{Kind: plan.Woke}
}

// step tells the planner of an event and does what it says; false at the end. wake is
// when it wants to be told that nothing has happened.
func (j *job) step(e plan.Event) (wake time.Time, on bool) {
	var acts []plan.Action
	e.Job = j.climb
	j.trace.Event(e)
	j.f.Think(func(m *plan.Member) {
		acts, wake = m.Step(time.Now(), e), j.climb.Wake()
	})
	for _, a := range acts {
		j.trace.Action(a)
		switch a.Kind {
		case plan.Ask:
			ask := &asking{peer: a.Peer, begun: time.Now()}
			j.f.tally.Asked(peer.ID(a.Peer))
			ask.ctx, ask.cancel = context.WithCancel(j.ctx)
			j.asks[a.Peer] = ask
			j.work.Go(func() { j.ask(ask, a) })
		case plan.Drop:
			j.asks[a.Peer].cancel()
			delete(j.asks, a.Peer)
			j.f.stalled(peer.ID(a.Peer), a.Quiet)
		case plan.ReadOrigin:
			j.work.Go(func() { j.readOrigin(a.Hedge) })
		case plan.WaitFarm:
			j.work.Go(func() { j.wait(plan.FarmWait, j.rs.peers.NearSettled) })
		case plan.WaitSwarm:
			j.work.Go(func() { j.wait(a.Wait, func() (<-chan struct{}, bool) { return nil, false }) })
		case plan.WaitReads:
			j.work.Go(j.awaitOthers)
		case plan.Try:
			j.f.start(func() { j.f.try(j.rs.head.Scope, peer.ID(a.Peer)) })
		case plan.Done:
			return wake, false
		case plan.Fail:
			j.fail(why.InVain(j.what(), a, j.f.cfg.Members.Live(), j.failure))
			return wake, false
		}
	}
	return wake, true
}

// tell has fly look at an event, unless it has ended.
func (j *job) tell(e plan.Event) {
	select {
	case j.events <- e:
	case <-j.ctx.Done():
	}
}

// wait waits for a while, or until settled, which else says when to ask it again.
func (j *job) wait(most time.Duration, settled func() (<-chan struct{}, bool)) {
	ctx, cancel := context.WithTimeout(j.ctx, most)
	defer cancel()
	for again, ok := settled(); !ok && ctx.Err() == nil; again, ok = settled() {
		select {
		case <-again:
		case <-ctx.Done():
		}
	}
	j.tell(plan.Event{Kind: plan.Waited})
}

func (j *job) fail(err error) {
	j.f.mu.Lock()
	defer j.f.mu.Unlock()
	for _, fl := range j.flights {
		if j.f.end(fl, arrival{}, err) {
			j.f.leaveOut(fl)
		}
	}
}

func (j *job) what() string {
	if len(j.flights) == 1 {
		return fmt.Sprintf("fetch %s of root %s", j.flights[0].obj.Pos, j.rs.id)
	}
	return fmt.Sprintf("fetch %s and %d more of root %s", j.flights[0].obj.Pos, len(j.flights)-1, j.rs.id)
}

func (j *job) level() int { return j.flights[0].obj.Pos.Level }

func (j *job) left() []*flight {
	return slices.DeleteFunc(slices.Clone(j.flights), func(fl *flight) bool { return fl.ended.Load() })
}

// indexes of flights, rising.
func indexes(flights []*flight) []uint64 {
	out := make([]uint64, len(flights))
	for i, fl := range flights {
		out[i] = fl.obj.Pos.Index
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (j *job) fromCache() {
	for _, fl := range j.left() {
		if !j.f.cached(fl.obj) {
			continue
		}
		a := arrival{obj: fl.obj, from: FromCache}
		var err error
		if a.data, err = j.f.cfg.Cache.Get(fl.obj.ID, nil); err != nil {
			continue
		}
		if fl.obj.Pos.Level > 0 {
			if a.page, err = j.f.cfg.Cache.Get(fl.obj.Page, nil); err != nil {
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
	absent  bool  // something was not to be had,
	nowhere bool  // by the word of the origin to a member of this farm
	refer   peer.ID
	spare   int64 // bytes a second that it has left for us, 0 if it says nothing
}

// retryWithin is how soon a connection must have failed to be tried once more: two
// members that call each other at once may both fail, and a member that is gone
// refuses at once.
const retryWithin = 500 * time.Millisecond

// ask sends a request to a member, introduces the root if the member has not met
// it, and reports what came of it, unless it was dropped.
func (j *job) ask(ask *asking, a plan.Action) {
	defer ask.cancel()
	to := peer.ID(a.Peer)
	begun := time.Now()
	o := j.want(ask, a)
	if errors.Is(o.err, exchange.ErrDisconnected) && !o.some && time.Since(begun) < retryWithin {
		o = j.want(ask, a)
	}
	if envelope := j.record(to, o, a.Fetch); len(envelope) > 0 && j.f.cfg.Exchange.Introduce(ask.ctx, to, envelope) == nil {
		o = j.want(ask, a)
	}
	e := plan.Event{Kind: plan.Answered, Peer: a.Peer, Refer: plan.Peer(o.refer), Nowhere: o.nowhere, Spare: o.spare}
	switch {
	case errors.Is(o.err, exchange.ErrViolation):
		j.f.lied(to, o.err.Error())
		e.Why, e.Never = o.err.Error(), true
	case o.lied:
		e.Why, e.Never = "sent wrong bytes", true
	case ask.ctx.Err() != nil:
		return
	case o.useless != nil && !o.some:
		e.Why, e.Never = o.useless.Error(), true
	case o.err != nil:
		e.Why = o.err.Error()
		j.f.cfg.Log.Debug("a member was asked in vain", "peer", to, "err", o.err)
		if !errors.Is(o.err, exchange.ErrBusy) {
			j.f.unmet(to, o.err)
		}
	case o.unknown:
		e.Why, e.Never = "does not know the root", true
	default:
		j.f.Think(func(m *plan.Member) {
			m.Work(a.Peer, j.f.cfg.Now())
			if o.some && a.Fetch && a.Passed && !m.Origin {
				m.Provided(a.Peer)
			}
		})
	}
	j.tell(e)
}

// record returns the record to show a member before it is asked again: one that has not
// met the root, or, once, one that may read it by another record whose pages are other
// ones, or false. The latter is for a node without the origin: it has no other way, and
// until the member has the pages by its record, it is shown nothing.
func (j *job) record(to peer.ID, o outcome, fetch bool) []byte {
	switch {
	case o.unknown:
		return j.rs.sealed()
	case o.err == nil && !o.lied && j.f.cfg.Origin() == nil && (errors.Is(o.useless, errOtherPage) || fetch && o.absent):
		return j.rs.tellOnce(to)
	}
	return nil
}

// want asks a member that has proved who it is, and that it may know of the root.
func (j *job) want(ask *asking, a plan.Action) (o outcome) {
	left := j.left()
	if len(left) == 0 {
		return o
	}
	to := peer.ID(a.Peer)
	near, err := j.f.shown.Meet(ask.ctx, j.rs.head.Scope, to)
	if err != nil {
		return outcome{err: err}
	}
	ctx, cancel := context.WithCancel(ask.ctx)
	defer cancel()
	var mu sync.Mutex // guards o
	group := j.f.checks.Group(len(left), j.how.priority == exchange.PriorityGuest)
	var spare int64
	byIndex := map[uint64]*flight{}
	for _, fl := range left {
		byIndex[fl.obj.Pos.Index] = fl
	}
	source := FromSwarm
	if near {
		source = FromFarm
	}
	req := exchange.Request{Root: j.rs.id, Level: j.level(), Indexes: indexes(left), Priority: j.how.priority, Fetch: a.Fetch || a.Relay, Passed: a.Passed || a.Relay, NoOrigin: j.how.noOrigin || a.Relay, Trace: j.how.span.Name()}
	err = j.f.cfg.Exchange.Want(ctx, to, req, func(r exchange.Reply) {
		if d, ok := r.(*exchange.Data); ok {
			spare = d.Spare.Bytes()
			if fl := byIndex[d.Index]; fl != nil && !fl.ended.Load() {
				d.Take()
				group.Run(func() {
					lie, err := j.receive(ask, fl, source, d)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case lie:
						o.lied = true
						j.f.lied(to, err.Error())
						cancel()
					case err != nil:
						o.useless = err
					default:
						o.some = true
					}
				})
			}
			return
		}
		mu.Lock()
		defer mu.Unlock()
		switch r := r.(type) {
		case exchange.Absent:
			o.absent, o.nowhere = true, o.nowhere || r.Nowhere && near
			if j.level() == 0 {
				j.f.Think(func(*plan.Member) { j.rs.peers.Mind.Lacks(a.Peer, r.Indexes) })
			}
		case exchange.Queued:
			j.trace.Queued(to, r.Position)
		case exchange.Unknown:
			o.unknown = true
		case exchange.Refer:
			o.refer = r.Peer
		}
	})
	group.Wait()
	o.err, o.spare = err, spare
	return o
}

// errOtherPage says that a member has a map node with another page: the same content
// was imported twice, into packs of its own each time. It is no lie.
var errOtherPage = errors.New("has the same content in other packs")

// receive checks what a member sent and lands it. It is a lie when it is not the
// object that was asked for; a map node that can't be used is its maker's fault.
func (j *job) receive(ask *asking, fl *flight, from Source, r *exchange.Data) (lie bool, err error) {
	a := arrival{obj: fl.obj, from: from, free: r.Free}
	if a.data, err = content.Verify(fl.obj.ID, r.Body); err != nil {
		return true, err
	}
	if fl.obj.Pos.Level > 0 {
		if a.page, err = content.Verify(fl.obj.Page, r.Page); err != nil {
			return false, errOtherPage
		}
	}
	now, n := time.Now(), int64(len(r.Body)+len(r.Page))
	j.rs.count(from, int(n))
	j.trace.Brought(peer.ID(ask.peer))
	if !ask.met.Swap(true) {
		j.f.tally.Answered(peer.ID(ask.peer), now.Sub(ask.begun))
	}
	j.f.mu.Lock()
	j.f.mind.Step(now, plan.Event{Kind: plan.Brought, Job: j.climb, Peer: ask.peer, Bytes: int64(fl.obj.Stored())})
	j.f.mind.Count(j.f.cfg.Now(), n)
	j.f.mu.Unlock()
	return false, j.f.land(j.rs, a, fl)
}
