package exchange

import (
	"context"
	"sync"
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

// give takes the turn of t back.
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
