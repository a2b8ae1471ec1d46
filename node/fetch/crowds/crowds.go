// Package crowds spreads the load of runs that many members ask one for at once.
package crowds

import (
	"slices"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/grangemesh/grange/node/fetch/plan"
)

const (
	// crowdMax is to how many members a run is sent at once before the next is
	// referred to one that has it already.
	crowdMax = 4
	// Busy is how many requests of other farms a member answers at once before it refers who
	// has time: what an uplink of 1 Gbit/s carries in an eighth of a second.
	Busy = 16
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

// Begin takes a request. ok is true when the asker is to be referred to a member
// instead: once only, so that it gets the run here if the referral was in vain. One that
// has time is also referred while this member is busy; to itself, where it knows of nobody
// else: others may be sooner. Otherwise End follows.
func (b *Of[K]) Begin(key K, asker plan.Peer, hasTime bool) (to plan.Peer, ok bool) {
	c, known := b.runs.Get(key)
	if !known {
		c = &crowd{now: map[plan.Peer]int{}, referred: map[plan.Peer]bool{}}
		b.runs.Add(key, c)
	}
	switch {
	case hasTime && b.busy > 0 && b.now >= b.busy:
		to = c.refer(asker, b.self)
	case len(c.now) >= crowdMax:
		to = c.refer(asker, "")
	}
	if to != "" {
		return to, true
	}
	c.now[asker]++
	b.now++
	return "", false
}

// End notes that a request was answered, and whether the asker has the run now.
func (b *Of[K]) End(key K, asker plan.Peer, whole bool) {
	b.now--
	if c, ok := b.runs.Peek(key); ok {
		c.end(asker, whole)
	}
}
