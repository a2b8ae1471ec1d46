package exchange

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
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
	places turns

	// mu guards what follows. Lock order: session, then outbound.
	mu      sync.Mutex
	lanes   [wire.Lanes]*outbound
	opening [wire.Lanes]*opening
	retired bool // nobody would watch or close its streams any more
}

// opening is a stream on its way; the rest is set when done is closed. It is
// dropped when who began it left before anybody dialed.
type opening struct {
	done    chan struct{}
	out     *outbound
	err     error
	dropped bool
}

func newSession(x *Exchange, id peer.ID) *session {
	budget := wantsMax
	if len(x.shown()) == 0 {
		budget = strangerWantsMax
	}
	// Half of it: the peer counts a request for a little longer than we do.
	return &session{x: x, peer: id, places: turns{max: budget / 2}}
}

var errOpening = fmt.Errorf("open stream: %w", ErrStalled)

// lane returns the stream of a lane, opening it if need be, even when nobody waits.
func (s *session) lane(ctx context.Context, l wire.Lane) (*outbound, error) {
	patience, cancel := context.WithTimeoutCause(ctx, StallTimeout, errOpening)
	defer cancel()
	for {
		select {
		case <-s.x.stopped:
			return nil, content.ErrClosed
		default:
		}
		o, p, begin, err := s.find(l)
		if o != nil || err != nil {
			return o, err
		}
		if begin {
			s.open(ctx, l, p)
		}
		select {
		case <-p.done:
			if !p.dropped {
				return p.out, p.err
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
		case <-patience.Done():
			return nil, context.Cause(patience)
		}
	}
}

// find returns the stream of a lane, or else the opening to wait for, or to begin.
func (s *session) find(l wire.Lane) (o *outbound, p *opening, begin bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lanes[l] != nil:
		return s.lanes[l], nil, false, nil
	case s.opening[l] != nil:
		return nil, s.opening[l], false, nil
	case s.retired:
		return nil, nil, false, fmt.Errorf("%w: the peer was just forgotten; ask again", ErrDisconnected)
	}
	s.opening[l] = &opening{done: make(chan struct{})}
	return nil, s.opening[l], true, nil
}

// open begins to open a stream.
func (s *session) open(ctx context.Context, l wire.Lane, p *opening) {
	err := s.x.do(ctx, func(ctx context.Context) {
		p.out, p.err = s.dial(ctx, l)
		s.opened(l, p)
		if p.out == nil {
			return
		}
		if ctx.Err() != nil { // closing, which may have looked before it was there
			p.out.fail(content.ErrClosed)
		}
		p.out.read()
	})
	if err != nil {
		p.dropped = true
		s.opened(l, p)
	}
}

// opened settles an opening.
func (s *session) opened(l wire.Lane, p *opening) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opening[l] = nil
	s.lanes[l] = p.out
	close(p.done)
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
	if s.lanes[o.lane] == o {
		s.lanes[o.lane] = nil
	}
}

// streams returns the open streams.
func (s *session) streams() []*outbound {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.lanes[:]), func(o *outbound) bool { return o == nil })
}

// retire reports whether nothing is open here, nor ever will be: it may be forgotten.
func (s *session) retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = s.lanes == [wire.Lanes]*outbound{} && s.opening == [wire.Lanes]*opening{}
	return s.retired
}
