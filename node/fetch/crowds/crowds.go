// Package crowds spreads the load of runs that many members ask one for at once.
package crowds

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/grangemesh/grange/node/fetch/plan"
)

const (
	// Busy is how many requests of other farms a member answers at once before it refers who
	// has time: what an uplink of 1 Gbit/s carries in an eighth of a second.
	Busy = 16
	// Patience is how long a request waits for the one before it, whose asker may be slow:
	// some runs at a tenth of 1 Gbit/s. LongPatience is that while this member is busy: with
	// one more to answer none of them would be answered sooner, unless all askers are slow.
	Patience     = time.Second
	LongPatience = 10 * time.Second
	// runsMax bounds the runs that are remembered, the latest, and of each servedMax those that
	// have it, and referredMax those that were referred.
	runsMax, servedMax, referredMax = 1024, 16, 64
)

// Request is one for a run. HasTime says that nobody is blocked for it, and Held that the run
// is here. Then is called once: with "" where the asker is to get the run here, whose End
// follows; else with the member that it is to be referred to instead.
type Request struct {
	Asker         plan.Peer
	HasTime, Held bool
	Then          func(to plan.Peer)
}

// crowd is the members that ask for one run.
type crowd struct {
	now      map[plan.Peer]int // requests being answered
	waits    []*Request        // for one of those
	served   []plan.Peer       // have the run whole, the one referred to longest ago first
	referred map[plan.Peer]bool
}

// refer refers an asker, for the first time, to a member that has the run, or otherwise to
// another, "" for none.
func (c *crowd) refer(r *Request, otherwise plan.Peer) (ok bool) {
	if c.now[r.Asker] > 0 || c.referred[r.Asker] {
		return false
	}
	to := otherwise
	if i := slices.IndexFunc(c.served, func(p plan.Peer) bool { return p != r.Asker }); i >= 0 {
		to = c.served[i]
		c.served = append(slices.Delete(c.served, i, i+1), to)
	}
	if to == "" {
		return false
	}
	if len(c.referred) >= referredMax {
		clear(c.referred)
	}
	c.referred[r.Asker] = true
	r.Then(to)
	return true
}

// Of spreads the load of runs that everybody wants at once, each by its key. Not safe
// for concurrent use.
type Of[K comparable] struct {
	self plan.Peer
	busy int      // at so many requests; 0 for never
	now  int      // requests being answered
	late []func() // have those get the run that have waited long enough
	runs *simplelru.LRU[K, *crowd]
}

// New returns the crowds of a member that is busy while it answers so many requests,
// whatever they are for; 0 is for one that never is.
func New[K comparable](self plan.Peer, busy int) *Of[K] {
	runs, _ := simplelru.NewLRU[K, *crowd](runsMax, nil) // fails for sizes below 1 only
	return &Of[K]{self: self, busy: busy, runs: runs}
}

// Begin takes a request. An asker is referred once only, so that it gets the run here if that
// was in vain. While what is held is sent to one, the others that have time wait, as its way
// out carries one after the other anyway, and are referred to that one then; now has one that
// waits get it here all the same, and is nil for others. Who has time is also referred while
// this member is busy; to itself, where it knows of nobody else: others may be sooner.
func (b *Of[K]) Begin(key K, r Request) (now func(sure bool)) {
	c, known := b.runs.Get(key)
	if !known {
		c = &crowd{now: map[plan.Peer]int{}, referred: map[plan.Peer]bool{}}
		b.runs.Add(key, c)
	}
	switch {
	case r.HasTime && b.isBusy() && c.refer(&r, b.self), len(c.now) > 0 && c.refer(&r, ""):
		return nil
	case len(c.now) == 0 || !r.HasTime || !r.Held:
		b.serve(c, &r)
		return nil
	}
	c.waits = append(c.waits, &r)
	get := func() {
		if i := slices.Index(c.waits, &r); i >= 0 {
			c.waits = slices.Delete(c.waits, i, i+1)
			b.serve(c, &r)
		}
	}
	return func(sure bool) {
		if !sure && b.isBusy() {
			b.late = append(b.late, get)
			return
		}
		get()
	}
}

func (b *Of[K]) isBusy() bool { return b.busy > 0 && b.now >= b.busy }

// Await is Begin for who has nothing to do meanwhile, and returns what Then would be called
// with. It takes mu, which guards b, tells queued that it is going to wait, and does so until
// ctx ends, or for Patience, and LongPatience where that is.
func (b *Of[K]) Await(ctx context.Context, mu sync.Locker, key K, r Request, queued func()) (to plan.Peer) {
	turn := make(chan plan.Peer, 1)
	r.Then = func(to plan.Peer) { turn <- to }
	mu.Lock()
	now := b.Begin(key, r)
	mu.Unlock()
	if now == nil {
		return <-turn
	}
	queued()
	for _, patience := range [...]time.Duration{Patience, LongPatience - Patience} {
		select {
		case to := <-turn:
			return to
		case <-time.After(patience):
		case <-ctx.Done():
		}
		mu.Lock()
		now(patience != Patience || ctx.Err() != nil)
		mu.Unlock()
	}
	return <-turn
}

// admit has those get their runs that have waited long enough, until this member is busy again.
func (b *Of[K]) admit() {
	for len(b.late) > 0 && !b.isBusy() {
		get := b.late[0]
		b.late = b.late[1:]
		get() // unless it has it already
	}
}

func (b *Of[K]) serve(c *crowd, r *Request) {
	c.now[r.Asker]++
	b.now++
	r.Then("")
}

// End notes that a request was answered, and whether the asker has the run now.
func (b *Of[K]) End(key K, asker plan.Peer, whole bool) {
	b.now--
	defer b.admit()
	c, ok := b.runs.Peek(key)
	if !ok {
		return
	}
	if c.now[asker]--; c.now[asker] <= 0 {
		delete(c.now, asker)
	}
	if whole && !slices.Contains(c.served, asker) {
		c.served = append(c.served, asker)
		c.served = c.served[max(0, len(c.served)-servedMax):]
	}
	for i := 0; i < len(c.waits); {
		r, free := c.waits[i], len(c.now) == 0
		if !free && (!whole || r.Asker == asker || c.referred[r.Asker]) {
			i++
			continue
		}
		if c.waits = slices.Delete(c.waits, i, i+1); free {
			b.serve(c, r)
			continue
		}
		c.referred[r.Asker] = true
		r.Then(asker)
	}
}
