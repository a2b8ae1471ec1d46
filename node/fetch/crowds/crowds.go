// Package crowds spreads the load of runs that many members ask one for at once.
package crowds

import (
	"slices"

	"github.com/grangemesh/grange/node/fetch/plan"
)

const (
	// crowdMax is to how many members a run is sent at once before the next is
	// referred to one that has it already.
	crowdMax = 4
	// servedMax bounds how many members that have a run are remembered.
	servedMax = 16
)

// crowd is the members that one run is being sent to.
type crowd struct {
	now      map[plan.Peer]int // requests being answered
	served   []plan.Peer       // have the run whole, the one referred to longest ago first
	referred map[plan.Peer]bool
}

func (c *crowd) begin(asker plan.Peer) (to plan.Peer, ok bool) {
	if len(c.now) >= crowdMax && c.now[asker] == 0 && !c.referred[asker] {
		for i, p := range c.served {
			if p != asker {
				c.served = append(slices.Delete(c.served, i, i+1), p)
				if c.referred == nil {
					c.referred = map[plan.Peer]bool{}
				}
				c.referred[asker] = true
				return p, true
			}
		}
	}
	if c.now == nil {
		c.now = map[plan.Peer]int{}
	}
	c.now[asker]++
	return "", false
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
type Of[K comparable] map[K]*crowd

// Begin takes a request. ok is true when the asker is to be referred to a member
// instead: once only, so that it gets the run here if the referral was in vain.
// Otherwise End follows.
func (b Of[K]) Begin(key K, asker plan.Peer) (to plan.Peer, ok bool) {
	if b[key] == nil {
		b[key] = new(crowd)
	}
	return b[key].begin(asker)
}

// End notes that a request was answered, and whether the asker has the run now.
func (b Of[K]) End(key K, asker plan.Peer, whole bool) {
	if b[key].end(asker, whole); len(b[key].now) == 0 {
		delete(b, key)
	}
}
