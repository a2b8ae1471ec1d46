package exchange

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/wire"
)

// inbound is a stream that a peer opened to ask us. One goroutine reads it; each
// request has another, which writes its answers.
type inbound struct {
	*framed
	x     *Exchange
	asker *asker
	lane  wire.Lane
	out   link.Outflow // guarded by the link
	// frame is when the frame being read began, in Unix nanoseconds; 0 between frames.
	frame atomic.Int64

	// mu guards live, the requests that have not ended. Lock order: none inside.
	mu   sync.Mutex
	live map[uint32]open
}

// open is a request that has not ended.
type open struct {
	cancel   context.CancelCauseFunc
	want     *responder // nil for small requests
	canceled bool       // by the asker
}

// errCanceled is the cause of a request's context when its asker canceled it.
var errCanceled = errors.New("canceled by the asker")

func (x *Exchange) accept(ctx context.Context, s network.Stream) {
	defer s.Reset()
	in := &inbound{framed: newFramed(s, serveTimeout, new(atomic.Int64)), x: x, live: map[uint32]open{}}
	id := s.Conn().RemotePeer()
	if err := x.askers.join(id, in); err != nil {
		x.note.Do(func() { x.cfg.Log.Warn("stream refused", "peer", id, "err", err) })
		return
	}
	defer x.askers.leave(in)
	ctx, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	err := in.serve(ctx)
	cancel(err)
	in.asker.link.Close(&in.out)
	x.turns.Kick()
	x.ended(id, err)
}

// late reports whether a frame has taken longer to arrive than on any link of use.
func (in *inbound) late(now time.Time) bool {
	begun := in.frame.Load()
	return begun != 0 && now.Sub(time.Unix(0, begun)) > serveTimeout+timeFor(wire.CallSizeMax)
}

// ended judges why a stream ended.
func (x *Exchange) ended(id peer.ID, err error) {
	if errors.Is(err, ErrViolation) || errors.Is(err, content.ErrCorrupt) {
		x.metrics.violations.Inc()
		x.cfg.OnViolation(id, err)
	}
}

func (in *inbound) serve(ctx context.Context) error {
	h, err := in.hello()
	if err != nil {
		return err
	}
	if err := in.x.present(in.asker.id, h.Chain); err != nil && !errors.Is(err, content.ErrForbidden) {
		return err
	}
	if err := in.x.askers.admit(in); err != nil {
		return err
	}
	in.lane = h.Lane
	if h.Lane == wire.LaneUrgent {
		in.out.Class = link.Guest
	}
	if err := in.send(0, wire.Hello{Lane: h.Lane, Chain: in.x.shown()}); err != nil {
		return err
	}
	for {
		if err := in.next(ctx); err != nil {
			return err
		}
	}
}

// next reads one frame of the asker and begins what it asks for.
func (in *inbound) next(ctx context.Context) error {
	h, err := in.header()
	if err != nil {
		return err
	}
	if h.Type == wire.TypeData {
		return fmt.Errorf("%w: data from an asker", ErrViolation)
	}
	_, stranger := in.asker.peer(in.x)
	if stranger && h.Length > strangerFrameMax {
		return fmt.Errorf("%w: frame of %d bytes from a stranger; the limit is %d", content.ErrForbidden, h.Length, strangerFrameMax)
	}
	if err := in.asker.pace(ctx, h.Type, stranger); err != nil {
		return err
	}
	in.frame.Store(time.Now().UnixNano())
	m, err := in.message(h)
	in.frame.Store(0)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case wire.Ack:
		if !in.asker.link.Acked(&in.out, int(m.Bytes)) {
			return fmt.Errorf("%w: %d bytes acknowledged that were not asked about", ErrViolation, m.Bytes)
		}
		in.x.turns.Kick()
		return nil
	case wire.Cancel:
		in.cancel(h.ID)
		return nil
	case wire.Want:
		return in.want(ctx, h.ID, m)
	case wire.Introduce, wire.Subscribe, wire.Call:
		return in.small(ctx, h.ID, m)
	case wire.Promise, wire.Extend, wire.Read, wire.Cut, wire.Drop, wire.Status:
		return in.journal(ctx, h.ID, m)
	}
	return fmt.Errorf("%w: frame of type %d from an asker", ErrViolation, h.Type)
}

// begin registers a request; want is nil for a small one.
func (in *inbound) begin(ctx context.Context, id uint32, want *responder) (context.Context, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, ok := in.live[id]; ok {
		return nil, fmt.Errorf("%w: request %d begun twice", ErrViolation, id)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	in.live[id] = open{cancel: cancel, want: want}
	return ctx, nil
}

// end forgets a request, before the frame after which the asker may reuse the id.
func (in *inbound) end(id uint32) {
	in.mu.Lock()
	request, ok := in.live[id]
	delete(in.live, id)
	in.mu.Unlock()
	if ok {
		request.cancel(nil)
	}
}

// cancel does what the asker wants: a Want ends without waiting for the Server.
func (in *inbound) cancel(id uint32) {
	in.mu.Lock()
	request, ok := in.live[id]
	if !ok || request.canceled { // it ended while the Cancel was on its way, or this is another
		in.mu.Unlock()
		return
	}
	request.canceled = true
	in.live[id] = request
	in.mu.Unlock()
	request.cancel(errCanceled)
	if request.want != nil {
		in.x.work.Go(request.want.drop)
	}
}

// want begins a Want: it waits for its first turn, then the Server answers it.
func (in *inbound) want(ctx context.Context, id uint32, req Request) error {
	p, stranger := in.asker.peer(in.x)
	if (req.Priority == PriorityGuest) != (in.lane == wire.LaneUrgent) && !stranger || in.lane == wire.LaneControl {
		return fmt.Errorf("%w: want of priority %d on lane %d", ErrViolation, req.Priority, in.lane)
	}
	if stranger {
		req.Priority = PrioritySeed
	}
	r := newResponder(in, id, req, p.Identity.Role)
	ctx, err := in.begin(ctx, id, r)
	if err != nil {
		return err
	}
	if in.x.cfg.Server == nil {
		return in.refuse(id, wire.Unknown{})
	}
	cost := costOf(req, in.out.Class)
	if in.x.cfg.Allow(0) != nil || !in.asker.spend(cost, stranger) {
		return in.refuse(id, wire.Error{Kind: wire.KindBusy})
	}
	var ahead int
	var taken bool
	if !stranger { // who pays first, and then stands in line
		ahead, taken = in.x.turns.Take(&r.ticket)
	}
	in.x.work.Go(func() {
		if r.start(ctx, ahead, taken) == nil {
			in.x.cfg.Server.Want(ctx, p, req, r)
		}
		r.finish(ctx)
		in.asker.refund(cost)
	})
	return nil
}

// refuse ends a request that was not begun.
func (in *inbound) refuse(id uint32, m wire.Message) error {
	in.end(id)
	return in.send(id, m)
}

// small begins a request that is no Want: none of them needs a turn.
func (in *inbound) small(ctx context.Context, id uint32, m wire.Message) error {
	if in.lane != wire.LaneControl {
		return fmt.Errorf("%w: %T on lane %d", ErrViolation, m, in.lane)
	}
	ctx, err := in.begin(ctx, id, nil)
	if err != nil {
		return err
	}
	p, stranger := in.asker.peer(in.x)
	cost := costOf(m, link.Bulk)
	if !in.asker.spend(cost, stranger) {
		return in.refuse(id, wire.Error{Kind: wire.KindBusy})
	}
	in.work(ctx, id, m, cost, func() wire.Message { return in.answer(ctx, p, id, m) })
	return nil
}

// work sends what do answers, and gives back the cost then.
func (in *inbound) work(ctx context.Context, id uint32, m wire.Message, cost budget, do func() wire.Message) {
	answered, told := make(chan wire.Message, 1), make(chan struct{})
	in.x.work.Go(func() {
		answered <- do()
		<-told // an answer that is not read keeps its place
		in.asker.refund(cost)
	})
	in.x.work.Go(func() {
		in.reassure(ctx, id, m, answered)
		close(told)
	})
}

// reassure tells the asker that we are at it until there is an answer to send. A
// canceled call ends at once; a subscription is quiet, its last bitmap under way.
func (in *inbound) reassure(ctx context.Context, id uint32, m wire.Message, answered <-chan wire.Message) {
	tick := time.NewTicker(ProgressInterval)
	defer tick.Stop()
	canceled := ctx.Done()
	if _, ok := m.(wire.Subscribe); ok {
		tick.Stop()
		canceled = nil
	}
	for {
		var last wire.Message
		select {
		case <-tick.C:
			_ = in.send(id, wire.Progress{}) // an asker that is gone needs no answer
			continue
		case last = <-answered:
		case <-canceled:
			last = wire.Error{Kind: wire.KindCanceled}
		}
		in.end(id)
		_ = in.send(id, last)
		return
	}
}

// answer does what a small request asks and returns the frame that ends it.
func (in *inbound) answer(ctx context.Context, p Peer, id uint32, m wire.Message) wire.Message {
	var body []byte
	err := fmt.Errorf("%w: this member does not serve that", content.ErrNotFound)
	cfg := &in.x.cfg
	switch m := m.(type) {
	case wire.Introduce:
		if cfg.Server != nil {
			err = cfg.Server.Introduce(ctx, p, m.Envelope)
		}
	case wire.Subscribe:
		if cfg.Server != nil {
			err = cfg.Server.Bitmaps(ctx, p, m.Root, func(b *content.Bitmap) error { return in.sendBitmap(id, b) })
		}
	case wire.Call:
		if cfg.Answerer != nil {
			body, err = cfg.Answerer.Call(ctx, p, m.Method, m.Body)
		}
		if err == nil && len(body) > wire.CallSizeMax {
			err = fmt.Errorf("answer of %d bytes: %w: the limit is %d", len(body), content.ErrInvalid, wire.CallSizeMax)
		}
	}
	switch {
	case context.Cause(ctx) == errCanceled:
		return wire.Error{Kind: wire.KindCanceled}
	case err != nil:
		return wire.ErrorOf(err)
	}
	return wire.Answer{Body: body}
}

// sendBitmap sends b in parts that leave room for calls between them.
func (in *inbound) sendBitmap(id uint32, b *content.Bitmap) error {
	in.asker.bitmap.Lock()
	defer in.asker.bitmap.Unlock()
	encoded, err := b.Encode()
	if err != nil {
		return fmt.Errorf("send bitmap: %w", err)
	}
	for {
		n := min(len(encoded), wire.BitmapPartMax)
		m := wire.Bitmap{Last: n == len(encoded), Part: encoded[:n]}
		if err := in.send(id, m); err != nil || m.Last {
			return err
		}
		encoded = encoded[n:]
	}
}
