package exchange

import (
	"context"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/wire"
)

// turns gives out the right to work on one object: up to max at once, a quarter of them
// to strangers, and max more to guests, who never wait behind others' work.
type turns struct {
	max int

	// mu guards what follows. It is taken before a link's.
	mu        sync.Mutex
	waiting   queue
	bulk      int // turns out, without the guests'
	guests    int
	strangers int
}

// take gives t its turn, at once when it may go and nobody goes before it;
// otherwise it returns how many do, and t.ready gets a value later.
func (s *turns) take(t *ticket) (ahead int, taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ahead = s.waiting.push(t)
	s.serve()
	select {
	case <-t.ready:
		return 0, true
	default:
		return ahead, false
	}
}

// wait is take for who has nothing to do meanwhile.
func (s *turns) wait(ctx context.Context, t *ticket) error {
	if _, taken := s.take(t); taken {
		return nil
	}
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		s.leave(t)
		return context.Cause(ctx)
	}
}

// leave ends the wait of t; a turn that was given meanwhile is given back.
func (s *turns) leave(t *ticket) {
	s.mu.Lock()
	waited := s.waiting.remove(t)
	s.mu.Unlock()
	if !waited {
		<-t.ready
		if t.link != nil {
			t.link.Forgo(t.class, t.size)
		}
		s.give(t)
	}
}

func (s *turns) give(t *ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(t, -1)
	s.serve()
}

// kick gives out turns that a link has room for again.
func (s *turns) kick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve()
}

// serve gives turns to whoever may go. The caller holds mu.
func (s *turns) serve() {
	for {
		t := s.waiting.pop(s.mayGo)
		if t == nil {
			return
		}
		s.count(t, 1)
		t.ready <- struct{}{}
	}
}

// mayGo also books the room on the link of a ticket that may.
func (s *turns) mayGo(t *ticket) bool {
	switch {
	case t.priority == PriorityGuest && s.guests >= s.max,
		t.priority != PriorityGuest && s.bulk >= s.max,
		t.stranger && s.strangers >= max(1, s.max/4):
		return false
	}
	return t.link == nil || t.link.Book(t.class, t.size)
}

func (s *turns) count(t *ticket, n int) {
	if t.stranger {
		s.strangers += n
	}
	if t.priority == PriorityGuest {
		s.guests += n
	} else {
		s.bulk += n
	}
}

// ticket is one waiting place: for the next object that a peer asked for.
type ticket struct {
	peer     peer.ID
	priority Priority
	stranger bool
	// link is the way to the peer, nil where only the number of turns counts;
	// class is which of its flows the object is going to be part of.
	link  *link.Link
	class link.Class
	// size is the expected length of the object, in bytes.
	size int
	// ready gets a value when the turn is given.
	ready chan struct{}
}

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
	tickets []*ticket
}

// push adds t and returns how many tickets go before it as things stand.
func (q *queue) push(t *ticket) (ahead int) {
	for p := t.priority; int(p) < wire.Priorities; p++ {
		ahead += q.classes[p].size
	}
	r := &q.classes[t.priority]
	r.size++
	for _, l := range r.lines {
		if l.peer == t.peer {
			l.tickets = append(l.tickets, t)
			return ahead
		}
	}
	r.lines = append(r.lines, &line{t.peer, []*ticket{t}})
	return ahead
}

// pop removes and returns the first ticket that may go, nil when none may. A peer
// whose ticket went is last in turn; one whose ticket may not go keeps its place.
func (q *queue) pop(mayGo func(*ticket) bool) *ticket {
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
func (q *queue) remove(t *ticket) bool {
	r := &q.classes[t.priority]
	for i, l := range r.lines {
		if at := slices.Index(l.tickets, t); l.peer == t.peer && at >= 0 {
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
