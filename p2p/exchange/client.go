package exchange

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/wire"
)

// Want asks a peer and calls each with its replies, one at a time, from another
// goroutine; each is not called again after Want returned. It returns nil when
// every index was answered, or when Refer or Unknown ended the request; an error
// otherwise, after which some indexes may have been answered. A slow callback
// holds up the replies behind it, those of guests apart.
func (x *Exchange) Want(ctx context.Context, from peer.ID, req Request, each func(Reply)) error {
	err := x.want(ctx, from, req, each)
	x.count(err)
	if err != nil {
		return fmt.Errorf("ask %s for %s: %w", from, req.Root.Short(), err)
	}
	return nil
}

func (x *Exchange) want(ctx context.Context, from peer.ID, req Request, each func(Reply)) error {
	if err := req.validate(); err != nil {
		return err
	}
	s := x.session(from)
	place := &ticket{peer: from, priority: req.Priority, ready: make(chan struct{}, 1)}
	if err := s.places.wait(ctx, place); err != nil {
		return err
	}
	l := wire.LaneBulk
	if req.Priority == PriorityGuest {
		l = wire.LaneUrgent
	}
	p := newPending()
	p.level, p.priority, p.place = req.Level, req.Priority, place
	p.wants, p.left, p.each = true, newOutstanding(req.Indexes), each
	o, id, err := s.begin(ctx, l, p, wire.Want{
		Root: req.Root, Level: req.Level, Priority: uint8(req.Priority),
		Fetch: req.Fetch, Passed: req.Passed, Indexes: req.Indexes,
	})
	if err != nil {
		s.places.give(place)
		return err
	}
	return o.await(ctx, id, p)
}

// validate fails with ErrInvalid for what no peer would accept.
func (r Request) validate() error {
	switch {
	case len(r.Indexes) == 0 || len(r.Indexes) > wire.IndexesMax:
		return fmt.Errorf("%w: %d indexes; want 1 to %d", content.ErrInvalid, len(r.Indexes), wire.IndexesMax)
	case r.Level < 0 || r.Level > content.LevelMax:
		return fmt.Errorf("%w: level %d; want 0 to %d", content.ErrInvalid, r.Level, content.LevelMax)
	case int(r.Priority) >= priorities:
		return fmt.Errorf("%w: priority %d", content.ErrInvalid, r.Priority)
	case r.Indexes[len(r.Indexes)-1] > wire.IndexMax:
		return fmt.Errorf("%w: index %d; the limit is %d", content.ErrInvalid, r.Indexes[len(r.Indexes)-1], uint64(wire.IndexMax))
	}
	for i := 1; i < len(r.Indexes); i++ {
		if r.Indexes[i] <= r.Indexes[i-1] {
			return fmt.Errorf("%w: index %d after %d; want them rising", content.ErrInvalid, r.Indexes[i], r.Indexes[i-1])
		}
	}
	return nil
}

// count notes how a request ended.
func (x *Exchange) count(err error) {
	outcome := "failed"
	switch {
	case err == nil:
		outcome = "ok"
	case errors.Is(err, ErrStalled):
		outcome = "stalled"
	case errors.Is(err, ErrDisconnected):
		outcome = "disconnected"
	case errors.Is(err, ErrBusy):
		outcome = "busy"
	case errors.Is(err, ErrViolation):
		outcome = "violation"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		outcome = "canceled"
	}
	x.metrics.requests.WithLabelValues(outcome).Inc()
}

// Introduce sends the envelope of a record to a peer that answered Unknown.
func (x *Exchange) Introduce(ctx context.Context, to peer.ID, envelope []byte) error {
	if len(envelope) == 0 || len(envelope) > wire.EnvelopeSizeMax {
		return fmt.Errorf("introduce to %s: %w: envelope of %d bytes", to, content.ErrInvalid, len(envelope))
	}
	if _, err := x.ask(ctx, to, wire.Introduce{Envelope: envelope}); err != nil {
		return fmt.Errorf("introduce to %s: %w", to, err)
	}
	return nil
}

// Call asks a peer's Answerer. Errors of the remote wrap the sentinel of package
// content that they wrapped there.
func (x *Exchange) Call(ctx context.Context, to peer.ID, method string, body []byte) ([]byte, error) {
	if method == "" || len(method) > wire.MethodMax || len(body) > wire.CallSizeMax {
		return nil, fmt.Errorf("call %.80q of %s: %w: %d bytes", method, to, content.ErrInvalid, len(body))
	}
	answer, err := x.ask(ctx, to, wire.Call{Method: method, Body: body})
	if err != nil {
		return nil, fmt.Errorf("call %s of %s: %w", method, to, err)
	}
	return answer, nil
}

// ask sends a small request and waits for its answer.
func (x *Exchange) ask(ctx context.Context, to peer.ID, m wire.Message) ([]byte, error) {
	p := newPending()
	o, id, err := x.session(to).begin(ctx, wire.LaneControl, p, m)
	if err == nil {
		err = o.await(ctx, id, p)
	}
	x.count(err)
	if err != nil {
		return nil, err
	}
	return p.answer, nil
}

// Bitmaps yields the set of chunks of root that the peer holds, then additions to
// it, merged while the consumer is busy. It ends with an error when the peer is
// gone (or has no such root: ErrNotFound), silently when ctx ends.
func (x *Exchange) Bitmaps(ctx context.Context, from peer.ID, root content.CID) iter.Seq2[*content.Bitmap, error] {
	return func(yield func(*content.Bitmap, error) bool) {
		p := newPending()
		p.bitmap = &inbox{ready: make(chan struct{}, 1)}
		o, id, err := x.session(from).begin(ctx, wire.LaneControl, p, wire.Subscribe{Root: root})
		for err == nil {
			select {
			case <-p.bitmap.ready:
				if !yield(p.bitmap.empty(), nil) {
					o.abandon(ctx, id, p)
					return
				}
			case err = <-p.done:
				if err == nil {
					err = fmt.Errorf("%w: the peer ended it", content.ErrUnavailable)
				}
			case <-ctx.Done():
				o.abandon(ctx, id, p)
				return
			}
		}
		if ctx.Err() == nil {
			yield(nil, fmt.Errorf("bitmaps of %s at %s: %w", root.Short(), from, err))
		}
	}
}

// inbox collects the bitmaps of a subscription for a consumer who may be busy.
type inbox struct {
	parts []byte        // of an unfinished bitmap; the reader's
	ready chan struct{} // has a value while merged is not nil

	mu     sync.Mutex // guards merged
	merged *content.Bitmap
}

func (b *inbox) take(m wire.Bitmap) error {
	if len(b.parts)+len(m.Part) > content.BitmapSizeMax {
		return fmt.Errorf("%w: bitmap over %d bytes", ErrViolation, content.BitmapSizeMax)
	}
	b.parts = append(b.parts, m.Part...)
	if !m.Last {
		return nil
	}
	bitmap, err := content.DecodeBitmap(b.parts)
	b.parts = nil
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.merged == nil {
		b.merged = bitmap
		b.ready <- struct{}{}
		return nil
	}
	b.merged.Union(bitmap)
	return nil
}

func (b *inbox) empty() *content.Bitmap {
	b.mu.Lock()
	defer b.mu.Unlock()
	merged := b.merged
	b.merged = nil
	return merged
}

// remoteError is a peer's error with the category that it had there.
func remoteError(m wire.Error) error {
	switch sentinel := m.Kind.Sentinel(); {
	case m.Kind == wire.KindBusy:
		return ErrBusy
	case m.Kind == wire.KindCanceled:
		return context.Canceled
	case sentinel == nil:
		return errors.New("peer: " + m.Text)
	default:
		return &told{m.Text, sentinel}
	}
}

// told is an error that a peer told us of.
type told struct {
	text     string
	sentinel error
}

func (e *told) Error() string { return "peer: " + e.text }
func (e *told) Unwrap() error { return e.sentinel }
