package exchange

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange/turns"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// openTimeout is how long a connection and a stream may take to open, hole
	// punching included. Nobody waits for it longer than StallTimeout.
	openTimeout = 10 * time.Second
	// sessionsMax is how many peers we remember; over it, those with nothing open go.
	sessionsMax = 1024
)

// session is what we have with a peer that we ask: a stream a lane, opened when needed.
type session struct {
	x    *Exchange
	peer peer.ID
	// excused is shared by the lanes: they are one connection.
	excused atomic.Int64
	// places keeps our Wants within the peer's budget, the urgent ones first.
	places turns.Turns
	// journal keeps our requests of the journal lane within it.
	journal turns.Turns

	// mu guards what follows. Lock order: session, then outbound.
	mu      sync.Mutex
	lanes   [wire.Lanes]*lane
	retired bool // nobody would watch or close its streams any more
}

// lane is the way to a peer for requests of a kind. When ready is closed, out is a stream,
// until that ends, or err says why there is none; the session's mu guards both.
type lane struct {
	ready chan struct{}
	out   *outbound
	err   error
}

func newSession(x *Exchange, id peer.ID) *session {
	budget := wantsMax
	if len(x.shown()) == 0 {
		budget = strangerWantsMax
	}
	// Half of it: the peer counts a request for a little longer than we do.
	return &session{x: x, peer: id, places: turns.Turns{Max: budget / 2}, journal: turns.Turns{Max: journalMax / 2}}
}

var errOpening = fmt.Errorf("open stream: %w", ErrStalled)

// lane returns the stream of a lane, opening it if need be, even when nobody waits.
func (s *session) lane(ctx context.Context, l wire.Lane) (*outbound, error) {
	way, err := s.way(l)
	if err != nil {
		return nil, err
	}
	patience, cancel := context.WithTimeoutCause(ctx, StallTimeout, errOpening)
	defer cancel()
	select {
	case <-way.ready:
		s.mu.Lock()
		defer s.mu.Unlock()
		return way.out, way.err
	case <-patience.Done():
		return nil, context.Cause(patience)
	}
}

// way returns that of a lane, begun if there is none.
func (s *session) way(l wire.Lane) (*lane, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lanes[l] != nil:
		return s.lanes[l], nil
	case s.retired:
		return nil, fmt.Errorf("%w: the peer was just forgotten; ask again", ErrDisconnected)
	}
	way := &lane{ready: make(chan struct{})}
	if err := s.x.start(func(ctx context.Context) { s.open(ctx, l, way) }); err != nil {
		return nil, err
	}
	s.lanes[l] = way
	return way, nil
}

// open opens a stream, and reads it until it ends.
func (s *session) open(ctx context.Context, l wire.Lane, way *lane) {
	out, err := s.dial(ctx, l)
	s.mu.Lock()
	if way.out, way.err = out, err; err != nil {
		s.lanes[l] = nil
	}
	s.mu.Unlock()
	close(way.ready)
	if err != nil {
		return
	}
	if ctx.Err() != nil { // closing, which may have looked before it was there
		out.fail(content.ErrClosed)
	}
	out.read()
}

func (s *session) dial(ctx context.Context, l wire.Lane) (*outbound, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	stream, err := s.x.cfg.Host.NewStream(ctx, s.peer, s.x.protocol)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w: %w", ErrDisconnected, err)
	}
	o := &outbound{framed: newFramed(stream, StallTimeout, &s.excused), session: s, lane: l, greeted: make(chan struct{}), live: map[uint32]*pending{}}
	if err := o.send(0, wire.Hello{Lane: l, Chain: s.x.shown()}); err != nil {
		return nil, err
	}
	return o, nil
}

// lost forgets a stream that ended.
func (s *session) lost(o *outbound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if way := s.lanes[o.lane]; way != nil && way.out == o {
		s.lanes[o.lane] = nil
	}
}

func (s *session) streams() (open []*outbound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, way := range s.lanes {
		if way != nil && way.out != nil {
			open = append(open, way.out)
		}
	}
	return open
}

// retire reports whether nothing is open here, nor ever will be: it may be forgotten.
func (s *session) retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = s.lanes == [wire.Lanes]*lane{}
	return s.retired
}
