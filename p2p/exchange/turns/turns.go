// Package turns gives out the right to work on one object: by priority, then fairly among
// peers, as far as their links, and the rate that is set, have room.
package turns

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// Quarters of the turns that tickets of a priority, and of lower ones, have at most: one
	// that is more urgent finds a turn when it comes. Guests have all, and others none of theirs.
	seedQuarters     = 2
	prefetchQuarters = 3
	allQuarters      = 4
	// strangerQuarters is how many of them strangers have.
	strangerQuarters = 1
	// burst is for how long a rate that was not used may be made up for: short beside what
	// anybody measures a line by. burstMin, in bytes, is one object, which goes as a whole.
	burst    = time.Second / 8
	burstMin = content.ChunkSizeDefault
)

// Turns are up to Max at once, a quarter of them to strangers, and Max more to guests, who
// never wait behind others' work. Safe for concurrent use.
type Turns struct {
	// Max is set before the first use.
	Max int

	// mu guards what follows. It is taken before a link's.
	mu        sync.Mutex
	waiting   queue
	out       [wire.Priorities]int // turns
	strangers int                  // of them
	rate      *rate.Limiter        // of bytes, all priorities together; nil is none
	due       *time.Timer          // when the rate has room again; nil when nobody waits for that
}

// Limit sets how many bytes a second turns are given for, from now on; 0 is without limit.
func (s *Turns) Limit(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate = nil
	if bytes > 0 {
		s.rate = rate.NewLimiter(rate.Limit(bytes), max(burstMin, int(float64(bytes)*burst.Seconds())))
	}
	s.serve()
}

// Waiting returns how many peers wait for a turn, counted once for each priority.
func (s *Turns) Waiting() (peers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.waiting.classes {
		peers += len(r.lines)
	}
	return peers
}

// Take gives t its turn, at once when it may go and nobody goes before it;
// otherwise it returns how many do, and t.Ready gets a value later.
func (s *Turns) Take(t *Ticket) (ahead int, taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ahead = s.waiting.push(t)
	s.serve()
	select {
	case <-t.Ready:
		return 0, true
	default:
		return ahead, false
	}
}

// Wait is Take for who has nothing to do meanwhile.
func (s *Turns) Wait(ctx context.Context, t *Ticket) error {
	if _, taken := s.Take(t); taken {
		return nil
	}
	select {
	case <-t.Ready:
		return nil
	case <-ctx.Done():
		s.Leave(t)
		return context.Cause(ctx)
	}
}

// Leave ends the wait of t; a turn that was given meanwhile is given back.
func (s *Turns) Leave(t *Ticket) {
	s.mu.Lock()
	waited := s.waiting.remove(t)
	s.mu.Unlock()
	if !waited {
		<-t.Ready
		s.Forgo(t)
	}
}

// Forgo gives back a turn in which nothing was sent.
func (s *Turns) Forgo(t *Ticket) {
	if t.Link != nil {
		t.Link.Forgo(t.Class, t.Size)
	}
	s.Give(t, 0)
}

// Give ends a turn in which so many bytes are sent.
func (s *Turns) Give(t *Ticket, sent int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(t, -1)
	s.pay(sent - t.Size)
	s.serve()
}

// Kick gives out turns that a link has room for again.
func (s *Turns) Kick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve()
}

// Spend takes bytes of the rate that are sent without a turn.
func (s *Turns) Spend(bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pay(bytes)
}

// pay takes bytes of the rate. They may be more than it has: then it is in debt. The
// caller holds mu.
func (s *Turns) pay(bytes int) {
	for s.rate != nil && bytes != 0 {
		part := min(bytes, s.rate.Burst()) // it takes no more at once
		s.rate.ReserveN(time.Now(), part)
		bytes -= part
	}
}

// debt returns how long the rate has no room. The caller holds mu.
func (s *Turns) debt() time.Duration {
	if s.rate == nil {
		return 0
	}
	if left := s.rate.Tokens(); left < 1 {
		return max(time.Millisecond, time.Duration((1-left)/float64(s.rate.Limit())*float64(time.Second)))
	}
	return 0
}

// serve gives turns to whoever may go. The caller holds mu.
func (s *Turns) serve() {
	if s.due != nil {
		s.due.Stop()
		s.due = nil
	}
	for !s.waiting.empty() {
		if wait := s.debt(); wait > 0 {
			s.due = time.AfterFunc(wait, s.Kick)
			return
		}
		t := s.waiting.pop(s.mayGo)
		if t == nil {
			return
		}
		s.count(t, 1)
		s.pay(t.Size)
		t.Ready <- struct{}{}
	}
}

// mayGo also books the room on the link of a ticket that may.
func (s *Turns) mayGo(t *Ticket) bool {
	switch {
	case t.Priority == wire.PriorityGuest && s.out[wire.PriorityGuest] >= s.Max,
		t.Priority <= wire.PrioritySeed && s.upTo(wire.PrioritySeed) >= s.quarters(seedQuarters),
		t.Priority <= wire.PriorityPrefetch && s.upTo(wire.PriorityPrefetch) >= s.quarters(prefetchQuarters),
		t.Priority < wire.PriorityGuest && s.upTo(wire.PriorityReadahead) >= s.quarters(allQuarters),
		t.Stranger && s.strangers >= s.quarters(strangerQuarters):
		return false
	}
	return t.Link == nil || t.Link.Book(t.Class, t.Size)
}

func (s *Turns) quarters(n int) int { return max(1, s.Max*n/allQuarters) }

// upTo returns how many turns of a priority, and lower ones, are out.
func (s *Turns) upTo(p wire.Priority) (n int) {
	for _, out := range s.out[:p+1] {
		n += out
	}
	return n
}

func (s *Turns) count(t *Ticket, n int) {
	if t.Stranger {
		s.strangers += n
	}
	s.out[t.Priority] += n
}

// Ticket is one waiting place: for the next object that a peer asked for.
type Ticket struct {
	Peer     peer.ID
	Priority wire.Priority
	Stranger bool
	// Link is the way to the peer, nil where only the number of turns counts;
	// Class is which of its flows the object is going to be part of.
	Link  *link.Link
	Class link.Class
	// Size is the expected length of the object, in bytes.
	Size int
	// Ready gets a value when the turn is given.
	Ready chan struct{}
}

// NewTicket returns one of a peer that is limited by the number of turns only.
func NewTicket(p peer.ID, priority wire.Priority) *Ticket {
	return &Ticket{Peer: p, Priority: priority, Ready: make(chan struct{}, 1)}
}
