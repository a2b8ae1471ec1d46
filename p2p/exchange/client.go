package exchange

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange/turns"
	"github.com/grangemesh/grange/p2p/wire"
)

// Want asks a peer and calls each with its replies, one at a time, from another
// goroutine; each is not called again after Want returned. It returns nil when
// every index was answered, or when Refer or Unknown ended the request; an error
// otherwise, after which some indexes may have been answered. A slow callback
// holds up the replies behind it, those of guests apart.
func (x *Exchange) Want(ctx context.Context, from peer.ID, req Request, each func(Reply)) error {
	if err := x.want(ctx, from, req, each); err != nil {
		return fmt.Errorf("ask %s for %s: %w", from, req.Root.Short(), err)
	}
	return nil
}

func (x *Exchange) want(ctx context.Context, from peer.ID, req Request, each func(Reply)) error {
	if err := validate(req); err != nil {
		return err
	}
	s := x.session(from)
	place := turns.NewTicket(from, req.Priority)
	if err := s.places.Wait(ctx, place); err != nil {
		return err
	}
	l := wire.LaneBulk
	if req.Priority == PriorityGuest {
		l = wire.LaneUrgent
	}
	p := newPending()
	p.level, p.priority, p.give = req.Level, req.Priority, func() { s.places.Give(place, 0) }
	p.wants, p.left, p.each = true, newOutstanding(req.Indexes), each
	o, id, err := s.begin(ctx, l, p, req)
	if err != nil {
		s.places.Give(place, 0)
		return err
	}
	return o.await(ctx, id, p)
}

// validate fails with ErrInvalid for what no peer would accept.
func validate(r Request) error {
	switch {
	case len(r.Indexes) == 0 || len(r.Indexes) > wire.IndexesMax:
		return fmt.Errorf("%w: %d indexes; want 1 to %d", content.ErrInvalid, len(r.Indexes), wire.IndexesMax)
	case r.Level < 0 || r.Level > content.LevelMax:
		return fmt.Errorf("%w: level %d; want 0 to %d", content.ErrInvalid, r.Level, content.LevelMax)
	case r.Priority > PriorityGuest:
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

// Call asks a peer's Answerer. Errors keep the sentinel of package content.
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
	if err != nil {
		return nil, err
	}
	return p.answer, nil
}

// bitmapMax bounds what is kept of one bitmap, in bytes: any set of a root of 2^24
// chunks, a TiB by default; those of larger roots mostly compress to as much.
const bitmapMax = 2 << 20

// errBitmapSize ends a subscription whose bitmaps are too large to follow.
var errBitmapSize = fmt.Errorf("%w: its bitmap takes over %d bytes", content.ErrNoSpace, bitmapMax)

// Bitmaps yields the set of chunks of root that the peer holds, then additions to it,
// merged while the consumer is busy. It ends with an error when the peer is gone (has
// no such root: ErrNotFound; shows chunks beyond it: ErrViolation; shows too much to
// keep: ErrNoSpace), silently when ctx ends.
func (x *Exchange) Bitmaps(ctx context.Context, from peer.ID, root content.CID, chunks uint64) iter.Seq2[*content.Bitmap, error] {
	return func(yield func(*content.Bitmap, error) bool) {
		p := newPending()
		p.bitmap = &inbox{chunks: chunks, ready: make(chan struct{}, 1)}
		o, id, err := x.session(from).begin(ctx, wire.LaneControl, p, wire.Subscribe{Root: root})
		for err == nil {
			select {
			case <-p.bitmap.ready:
				var b *content.Bitmap
				if b, err = p.bitmap.drain(); err != nil {
					o.abandon(id, p)
				} else if b != nil && !yield(b, nil) {
					o.abandon(id, p)
					return
				}
			case err = <-p.done:
				if err == nil {
					err = fmt.Errorf("%w: the peer ended it", content.ErrUnavailable)
				}
			case <-ctx.Done():
				o.abandon(id, p)
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
	chunks uint64        // of the root
	parts  []byte        // of an unfinished bitmap; the reader's
	ready  chan struct{} // has a value while there is something for the consumer

	mu     sync.Mutex // guards what follows
	merged *content.Bitmap
	err    error // it has become too large: what still comes is dropped
}

func (b *inbox) add(m wire.Bitmap) error {
	b.parts = append(b.parts, m.Part...)
	large := len(b.parts) > bitmapMax
	if !m.Last && !large {
		return nil
	}
	parts := b.parts
	b.parts = nil
	bitmap := new(content.Bitmap)
	if !large {
		var err error
		if bitmap, err = content.DecodeBitmap(parts); err != nil {
			return err
		}
	}
	if !bitmap.Within(b.chunks) {
		return fmt.Errorf("%w: bitmap beyond the %d chunks of its root", ErrViolation, b.chunks)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.merged != nil {
		bitmap.Union(b.merged)
	}
	if b.merged = bitmap; b.err != nil || large || bitmap.Bytes() > bitmapMax {
		b.merged, b.err = nil, errBitmapSize
	}
	select {
	case b.ready <- struct{}{}:
	default: // it was told
	}
	return nil
}

func (b *inbox) drain() (*content.Bitmap, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	merged := b.merged
	b.merged = nil
	return merged, b.err
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
		return &reported{m.Text, sentinel}
	}
}

// reported is an error that a peer told us of.
type reported struct {
	text     string
	sentinel error
}

func (e *reported) Error() string { return "peer: " + e.text }
func (e *reported) Unwrap() error { return e.sentinel }
