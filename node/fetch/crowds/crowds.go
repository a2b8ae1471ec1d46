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
	// some runs at a tenth of 1 Gbit/s.
	Patience = time.Second
	// servedMax bounds how many members that have a run are remembered.
	servedMax = 16
	// runsMax bounds the runs that are remembered, the latest, and referredMax those of
	// each that were referred.
	runsMax, referredMax = 1024, 64
)

// crowd is the members that one run is being sent to.
type crowd struct {
	now      map[plan.Peer]int // requests being answered
	served   []plan.Peer       // have the run whole, the one referred to longest ago first
	referred map[plan.Peer]bool
	waits    []*waiting
}

// waiting is a request for a run that is being sent to another.
type waiting struct {
	Request
	then func(to plan.Peer)
}

// Request is one for a run. HasTime says that nobody is blocked for it, and Held that the run
// is here.
type Request struct {
	Asker         plan.Peer
	HasTime, Held bool
}

// refer returns a member that has the run, for one that was not referred yet; else "".
func (c *crowd) refer(asker, otherwise plan.Peer) (to plan.Peer) {
	if c.now[asker] > 0 || c.referred[asker] {
		return ""
	}
	to = otherwise
	if i := slices.IndexFunc(c.served, func(p plan.Peer) bool { return p != asker }); i >= 0 {
		to = c.served[i]
		c.served = append(slices.Delete(c.served, i, i+1), to)
	}
	if to != "" {
		if len(c.referred) >= referredMax {
			clear(c.referred)
		}
		c.referred[asker] = true
	}
	return to
}

func (c *crowd) end(asker plan.Peer, whole bool) {
	if c.now[asker]--; c.now[asker] <= 0 {
		delete(c.now, asker)
	}
	if whole && !slices.Contains(c.served, asker) {
		c.served = append(c.served, asker)
		if len(c.served) > servedMax {
			c.served = c.served[1:]
		}
	}
}

// Of spreads the load of runs that everybody wants at once, each by its key. Not safe
// for concurrent use.
type Of[K comparable] struct {
	self plan.Peer
	busy int // at so many requests; 0 for never
	now  int // requests being answered
	runs *simplelru.LRU[K, *crowd]
}

// New returns the crowds of a member that is busy while it answers so many requests,
// whatever they are for; 0 is for one that never is.
func New[K comparable](self plan.Peer, busy int) *Of[K] {
	runs, _ := simplelru.NewLRU[K, *crowd](runsMax, nil) // fails for sizes below 1 only
	return &Of[K]{self: self, busy: busy, runs: runs}
}

// Begin takes a request, and calls then once, now or in what follows: with "" where the asker
// is to get the run here, whose End follows; else with the member that it is to be referred to
// instead, once only, so that it gets the run here if that was in vain. While what is held is
// sent to one, the others that have time wait, as its way out carries one after the other
// anyway, and are referred to that one then; now has one that waits get it here all the same,
// and is nil for others. Who has time is also referred while this member is busy; to itself,
// where it knows of nobody else: others may be sooner.
func (b *Of[K]) Begin(key K, r Request, then func(to plan.Peer)) (now func()) {
	c, known := b.runs.Get(key)
	if !known {
		c = &crowd{now: map[plan.Peer]int{}, referred: map[plan.Peer]bool{}}
		b.runs.Add(key, c)
	}
	to := plan.Peer("")
	switch {
	case r.HasTime && b.busy > 0 && b.now >= b.busy:
		to = c.refer(r.Asker, b.self)
	case len(c.now) > 0:
		to = c.refer(r.Asker, "")
	}
	w := &waiting{r, then}
	switch {
	case to != "":
		then(to)
	case len(c.now) == 0 || !r.HasTime || !r.Held:
		b.serve(c, w)
	default:
		c.waits = append(c.waits, w)
		return func() {
			if i := slices.Index(c.waits, w); i >= 0 {
				c.waits = slices.Delete(c.waits, i, i+1)
				b.serve(c, w)
			}
		}
	}
	return nil
}

// Await is Begin for who has nothing to do meanwhile. It takes mu, which guards b, tells queued
// that it is going to wait, and does so until ctx ends, or for Patience.
func (b *Of[K]) Await(ctx context.Context, mu sync.Locker, key K, r Request, queued func()) (to plan.Peer) {
	turn := make(chan plan.Peer, 1)
	mu.Lock()
	now := b.Begin(key, r, func(to plan.Peer) { turn <- to })
	mu.Unlock()
	if now == nil {
		return <-turn
	}
	queued()
	select {
	case to := <-turn:
		return to
	case <-time.After(Patience):
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	now()
	return <-turn
}

func (b *Of[K]) serve(c *crowd, w *waiting) {
	c.now[w.Asker]++
	b.now++
	w.then("")
}

// End notes that a request was answered, and whether the asker has the run now.
func (b *Of[K]) End(key K, asker plan.Peer, whole bool) {
	b.now--
	c, ok := b.runs.Peek(key)
	if !ok {
		return
	}
	c.end(asker, whole)
	for i := 0; i < len(c.waits); {
		w := c.waits[i]
		free := len(c.now) == 0
		if !free && (!whole || w.Asker == asker || c.referred[w.Asker]) {
			i++
			continue
		}
		c.waits = slices.Delete(c.waits, i, i+1)
		if free {
			b.serve(c, w)
		} else {
			c.referred[w.Asker] = true
			w.then(asker)
		}
	}
}
