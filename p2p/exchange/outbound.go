package exchange

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peerstore"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// canceledLife is how long a peer may take to end a request that we canceled.
	canceledLife = 5 * StallTimeout
	// quietMax is how long a stream is kept that nobody asks anything on: opening it
	// again costs a round trip, and keeping one to everybody some KiB each.
	quietMax = 5 * time.Minute
)

// errQuiet is why a stream ended that nobody had asked anything on for quietMax.
var errQuiet = errors.New("nothing was asked on this stream")

// outbound is a stream that we opened to ask a peer. One goroutine reads it.
type outbound struct {
	*framed
	session *session
	lane    wire.Lane

	// greeted is closed when the peer's hello has come, or never will. If the peer
	// has not proved who it is by then, refused says why.
	greeted chan struct{}
	refused error

	unacked int // bytes of data since our last Ack; the reader's
	// delivering is set while a callback runs, and busyAt, the watch's, is when it
	// last was: what waits behind a callback is excused.
	delivering atomic.Bool
	busyAt     time.Time

	// mu guards what follows; a pending's is never taken under it.
	mu     sync.Mutex
	live   map[uint32]*pending
	lastID uint32
	quiet  time.Time // when it was first seen without a request
	err    error     // why the stream is of no use any more
}

// pending is one request that has not ended.
type pending struct {
	level    int
	priority Priority
	done     chan error // gets one value
	sign     atomic.Int64
	give     func() // gives its place back when it ends; nil for small requests

	// What it is: a Want with indexes left, a subscription with an inbox, or a
	// small request with an answer. They are the stream's reader's.
	wants  bool
	left   outstanding
	bitmap *inbox
	answer []byte
	held   *wire.Held

	// canceled is when its asker lost interest; the outbound's mu guards it.
	canceled time.Time

	// mu guards each, which takes a Want's replies, nil once muted; held while it runs.
	mu   lock
	each func(Reply)
}

func newPending() *pending { return &pending{done: make(chan error, 1), mu: newLock()} }

// mute waits for a callback that runs and prevents further ones.
func (p *pending) mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.each = nil
}

// muted reports whether nobody wants to know.
func (p *pending) muted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.each == nil
}

// begin registers p and sends the frame that asks.
func (o *outbound) begin(p *pending, m wire.Message) (id uint32, err error) {
	o.mu.Lock()
	if o.err != nil {
		defer o.mu.Unlock()
		return 0, o.err
	}
	for o.lastID++; o.lastID == 0 || o.live[o.lastID] != nil; o.lastID++ {
	}
	id = o.lastID
	o.live[id] = p
	o.quiet = time.Time{}
	p.sign.Store(time.Now().UnixNano())
	o.mu.Unlock()
	if err := o.send(id, m); err != nil {
		o.fail(err)
	}
	return id, nil
}

// await waits for the end of a request. After it returns no callback runs.
func (o *outbound) await(ctx context.Context, id uint32, p *pending) error {
	select {
	case err := <-p.done:
		p.mute() // a request that stalled may yet be answered
		return err
	case <-ctx.Done():
		o.abandon(id, p)
		return context.Cause(ctx)
	}
}

// abandon cancels a request whose asker does not wait any more. It stays
// registered until the peer has ended it, since replies may be on their way.
func (o *outbound) abandon(id uint32, p *pending) {
	p.mute()
	o.mu.Lock()
	live := o.live[id] == p && p.canceled.IsZero()
	if live {
		p.canceled = time.Now()
	}
	o.mu.Unlock()
	if live {
		_ = o.session.x.start(func(context.Context) {
			if err := o.send(id, wire.Cancel{}); err != nil {
				o.fail(err)
			}
		})
	}
}

// finish ends a request, unless fail just did.
func (o *outbound) finish(id uint32, p *pending, err error) {
	o.mu.Lock()
	live := o.live[id] == p
	delete(o.live, id)
	o.mu.Unlock()
	if live {
		o.settle(p, err)
	}
}

// settle tells the asker how its request ended. It is called once a request.
func (o *outbound) settle(p *pending, err error) {
	if p.give != nil {
		p.give()
	}
	select {
	case p.done <- err:
	default: // it has stalled before
	}
}

// fail ends the stream and all its requests.
func (o *outbound) fail(err error) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		return
	}
	o.err = err
	live := o.live
	o.live = nil
	o.mu.Unlock()
	_ = o.stream.Reset()
	o.session.lost(o)
	for _, p := range live {
		o.settle(p, err)
	}
	o.session.x.ended(o.session.peer, err)
}

// retire ends a stream on which nobody asks anything, unless somebody just did.
func (o *outbound) retire() {
	o.mu.Lock()
	idle := len(o.live) == 0 && o.err == nil
	if idle {
		o.err = errQuiet
	}
	o.mu.Unlock()
	if idle {
		_ = o.stream.Reset()
		o.session.lost(o)
	}
}

// watch fails the requests that have stalled. A peer that does not even end what
// was canceled loses the stream.
func (o *outbound) watch(now time.Time) {
	if o.delivering.Load() {
		o.busyAt = now
	}
	excused := max(o.session.excused.Load(), o.busyAt.UnixNano())
	var stalled []uint32
	var asked []*pending
	deaf := false
	o.mu.Lock()
	if len(o.live) == 0 && o.quiet.IsZero() {
		o.quiet = now
	}
	quiet := len(o.live) == 0 && now.Sub(o.quiet) > quietMax
	for id, p := range o.live {
		switch silent := now.UnixNano() - max(p.sign.Load(), excused); {
		case !p.canceled.IsZero():
			deaf = deaf || now.Sub(p.canceled) > canceledLife && silent > int64(canceledLife)
		case silent > int64(StallTimeout):
			stalled, asked = append(stalled, id), append(asked, p)
			p.canceled = now
		}
	}
	o.mu.Unlock()
	if quiet {
		o.retire()
		return
	}
	if deaf {
		o.fail(fmt.Errorf("%w: a canceled request was not ended", ErrStalled))
		return
	}
	for i, p := range asked {
		select {
		case p.done <- ErrStalled:
		default:
		}
		o.session.x.work.Go(func() { _ = o.send(stalled[i], wire.Cancel{}) })
	}
}

// read takes the peer's frames until the stream ends.
func (o *outbound) read() {
	err := o.greet()
	for err == nil {
		err = o.next()
	}
	if errors.Is(err, content.ErrCorrupt) && !errors.Is(err, ErrViolation) {
		err = fmt.Errorf("%w: %w", ErrViolation, err)
	}
	o.fail(err)
}

// greet takes the peer's hello. Without a good certificate in it the stream ends.
func (o *outbound) greet() error {
	defer close(o.greeted)
	hello, err := o.hello()
	if err == nil && hello.Lane != o.lane {
		err = fmt.Errorf("%w: hello of lane %d on lane %d", ErrViolation, hello.Lane, o.lane)
	}
	if err == nil {
		err = o.session.x.present(o.session.peer, hello.Chain)
	}
	o.refused = err
	return err
}

// next reads one frame.
func (o *outbound) next() error {
	h, err := o.header()
	if err != nil {
		return err
	}
	o.mu.Lock()
	p := o.live[h.ID]
	o.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%w: frame of type %d for request %d, which is not open", ErrViolation, h.Type, h.ID)
	}
	p.sign.Store(time.Now().UnixNano())
	if h.Type == wire.TypeData {
		return o.takeData(h, p)
	}
	m, err := o.message(h)
	if err != nil {
		return err
	}
	return o.take(h.ID, p, m)
}

// take handles any frame but Data.
func (o *outbound) take(id uint32, p *pending, m wire.Message) error {
	misplaced := fmt.Errorf("%w: unexpected %T", ErrViolation, m)
	switch m := m.(type) {
	case wire.Queued, wire.Progress:
		o.deliver(p, m)
		return nil
	case wire.Absent:
		for _, index := range m.Indexes {
			if !p.left.answer(index) {
				return misplaced
			}
		}
		o.deliver(p, m)
		if p.left.left > 0 {
			return nil
		}
	case wire.Refer, wire.Unknown:
		if !p.wants {
			return misplaced
		}
		if to, ok := m.(wire.Refer); ok {
			o.session.x.cfg.Host.Peerstore().AddAddrs(to.Peer, to.Addrs, peerstore.TempAddrTTL)
		}
		o.deliver(p, m)
	case wire.Bitmap:
		if p.bitmap == nil {
			return misplaced
		}
		p.sign.Store(farFuture) // from here on it may have nothing to say
		return p.bitmap.add(m)
	case wire.Answer:
		if p.wants {
			return misplaced
		}
		p.answer = m.Body
	case wire.Held:
		if o.lane != wire.LaneJournal {
			return misplaced
		}
		p.held = &m
	case wire.Error:
		o.finish(id, p, remoteError(m))
		return nil
	default:
		return misplaced
	}
	o.finish(id, p, nil)
	return nil
}

// farFuture is the sign of life of a request that need not give any.
const farFuture = 1<<63 - 1

// deliver calls the asker back.
func (o *outbound) deliver(p *pending, r Reply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.each == nil {
		return
	}
	o.delivering.Store(true)
	p.each(r)
	o.delivering.Store(false)
}

// takeData reads an object to where it is used, or drops it when its asker is gone.
func (o *outbound) takeData(h wire.Header, p *pending) error {
	var head [wire.DataSize]byte
	if err := o.fill(head[:]); err != nil {
		return err
	}
	d, err := wire.DecodeData(h, head)
	if err != nil {
		return err
	}
	switch {
	case !p.left.answer(d.Index):
		return fmt.Errorf("%w: data of index %d, which was not asked for", ErrViolation, d.Index)
	case p.level == 0 && d.Page > 0, p.level > 0 && d.Raw > content.NodeSizeMax:
		return fmt.Errorf("%w: object of level %d with %d bytes and a page of %d", ErrViolation, p.level, d.Raw, d.Page)
	}
	if p.muted() {
		if err = o.skip(d.Stored + d.Page); err == nil {
			err = o.acknowledge(d)
		}
	} else {
		err = o.readData(d, p)
	}
	if err != nil {
		return err
	}
	if p.left.left == 0 {
		o.finish(h.ID, p, nil)
	}
	return nil
}

// readData reads body and page, acknowledges them and hands them over.
func (o *outbound) readData(d wire.Data, p *pending) error {
	x := o.session.x
	body := x.codec.pool.Get(d.Stored)
	page := x.codec.pool.Get(d.Page)
	data := &Data{Index: d.Index, Spare: d.Spare, pool: &x.codec.pool, lent: [2]*[]byte{body, page}}
	defer func() {
		if !data.taken {
			data.Free()
		}
	}()
	if err := o.fill(*body); err != nil {
		return err
	}
	if err := o.fill(*page); err != nil {
		return err
	}
	if err := o.acknowledge(d); err != nil {
		return err
	}
	if d.Codec == wire.CodecZstd {
		raw, err := x.codec.expand(*body, d.Raw)
		if err != nil {
			return err
		}
		x.codec.pool.Put(body)
		data.lent[0], body = raw, raw
	}
	x.metrics.received.WithLabelValues(p.priority.String()).Add(float64(d.Size()))
	x.traffic.received(o.session.peer, d.Size())
	data.Body, data.Page = *body, *page
	o.deliver(p, data)
	return nil
}

// acknowledge counts a frame and tells the peer when it asks for that.
func (o *outbound) acknowledge(d wire.Data) error {
	o.unacked += d.Size()
	if !d.Ack {
		return nil
	}
	n := o.unacked
	o.unacked = 0
	return o.send(0, wire.Ack{Bytes: uint32(n)})
}
