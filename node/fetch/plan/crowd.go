package plan

import "slices"

const (
	// crowdMax is to how many members a run is sent at once before the next is
	// referred to one that has it already.
	crowdMax = 4
	// servedMax bounds how many members that have a run are remembered.
	servedMax = 16
)

// Crowd is the members that one run is being sent to: it spreads the load of a
// run that everybody wants at once. The zero value is nobody. Not safe for
// concurrent use.
type Crowd struct {
	now      map[Peer]int // requests being answered
	served   []Peer       // have the run whole, the one referred to longest ago first
	referred map[Peer]bool
}

// Begin takes a request. ok is true when the asker is to be referred to a member
// instead: once only, so that it gets the run here if the referral was in vain.
// Otherwise End follows.
func (c *Crowd) Begin(asker Peer) (to Peer, ok bool) {
	if len(c.now) >= crowdMax && c.now[asker] == 0 && !c.referred[asker] {
		for i, p := range c.served {
			if p != asker {
				c.served = append(slices.Delete(c.served, i, i+1), p)
				if c.referred == nil {
					c.referred = map[Peer]bool{}
				}
				c.referred[asker] = true
				return p, true
			}
		}
	}
	if c.now == nil {
		c.now = map[Peer]int{}
	}
	c.now[asker]++
	return "", false
}

// End notes that a request was answered, and whether the asker has the run now.
func (c *Crowd) End(asker Peer, whole bool) {
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

// Idle reports whether nobody is being sent the run: the crowd may be forgotten.
func (c *Crowd) Idle() bool { return len(c.now) == 0 }
