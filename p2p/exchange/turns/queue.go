package turns

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/p2p/wire"
)

// queue orders tickets: by priority, in turn among the peers, then by age. It is pure.
type queue struct{ classes [wire.Priorities]ring }

// ring holds the lines of one priority; the first has waited longest for a turn.
type ring struct {
	lines []*line
	size  int // tickets in all lines
}

// line holds the tickets of one peer, oldest first; it is never empty.
type line struct {
	peer    peer.ID
	tickets []*Ticket
}

func (q *queue) empty() bool {
	for _, r := range q.classes {
		if r.size > 0 {
			return false
		}
	}
	return true
}

// push adds t and returns how many tickets go before it as things stand.
func (q *queue) push(t *Ticket) (ahead int) {
	for p := t.Priority; int(p) < wire.Priorities; p++ {
		ahead += q.classes[p].size
	}
	r := &q.classes[t.Priority]
	r.size++
	for _, l := range r.lines {
		if l.peer == t.Peer {
			l.tickets = append(l.tickets, t)
			return ahead
		}
	}
	r.lines = append(r.lines, &line{t.Peer, []*Ticket{t}})
	return ahead
}

// pop removes and returns the first ticket that may go, nil when none may. A peer
// whose ticket went is last in turn; one whose ticket may not go keeps its place.
func (q *queue) pop(mayGo func(*Ticket) bool) *Ticket {
	for p := wire.Priorities - 1; p >= 0; p-- {
		r := &q.classes[p]
		for i, l := range r.lines {
			if t := l.tickets[0]; mayGo(t) {
				r.take(i, 0)
				return t
			}
		}
	}
	return nil
}

// remove takes t out, wherever it is, and reports whether it was there.
func (q *queue) remove(t *Ticket) bool {
	r := &q.classes[t.Priority]
	for i, l := range r.lines {
		if at := slices.Index(l.tickets, t); l.peer == t.Peer && at >= 0 {
			r.take(i, at)
			return true
		}
	}
	return false
}

// take removes ticket at of line i. When it was the oldest, the line has had its turn.
func (r *ring) take(i, at int) {
	l := r.lines[i]
	r.size--
	l.tickets = slices.Delete(l.tickets, at, at+1)
	if len(l.tickets) > 0 && at > 0 {
		return
	}
	r.lines = slices.Delete(r.lines, i, i+1)
	if len(l.tickets) > 0 {
		r.lines = append(r.lines, l)
	}
}
