package exchange

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/exchange/turns"
	"github.com/grangemesh/grange/p2p/wire"
)

// responder answers one Want.
type responder struct {
	in     *inbound
	id     uint32
	role   trust.Role // of the asker; "" is a stranger
	ticket turns.Ticket

	// turn is held by whoever answers with data or waits for the right to; it
	// guards holds, whether the ticket has its turn, and room. It is taken before mu.
	turn  lock
	holds bool
	room  *[]byte // what Room lent

	// mu guards what follows, and is held while a frame without data is written:
	// none may come after the one that ends the request.
	mu      lock
	pending outstanding
	ended   bool
}

// errEnded is returned for an answer to a request that has ended.
var errEnded = errors.New("the request has ended")

func newResponder(in *inbound, id uint32, req Request, role trust.Role) *responder {
	return &responder{
		in: in, id: id, role: role, turn: newLock(), mu: newLock(), pending: newOutstanding(req.Indexes),
		ticket: turns.Ticket{
			Peer: in.asker.id, Priority: req.Priority, Stranger: role == "",
			Link: in.asker.link, Class: in.out.Class, Size: content.ChunkSizeDefault, Ready: make(chan struct{}, 1),
		},
	}
}

// start waits for the first turn, which was asked for already, but for strangers.
func (r *responder) start(ctx context.Context, ahead int, taken bool) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	if r.ticket.Stranger {
		return r.takeTurn(ctx)
	}
	if taken {
		r.holds = true
		return nil
	}
	if err := r.tell(wire.Queued{Position: uint32(ahead)}); err != nil {
		r.in.x.turns.Leave(&r.ticket)
		return err
	}
	return r.await(ctx)
}

// await waits for the turn that the ticket stands in line for. The caller holds turn.
func (r *responder) await(ctx context.Context) error {
	err := waitFor(ctx, r, r.ticket.Ready)
	if r.holds = err == nil; err != nil {
		r.in.x.turns.Leave(&r.ticket)
	}
	return err
}

// waitFor waits for something, and tells the asker meanwhile that it is not forgotten.
func waitFor[T any](ctx context.Context, r *responder, ready <-chan T) error {
	tick := time.Tick(ProgressInterval)
	for {
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick:
			if err := r.Progress(); err != nil {
				return err
			}
		}
	}
}

// takeTurn makes sure of a turn. The caller holds turn.
func (r *responder) takeTurn(ctx context.Context) error {
	if r.holds {
		return nil
	}
	if r.ticket.Stranger {
		if err := r.pay(ctx); err != nil {
			return err
		}
	}
	if _, taken := r.in.x.turns.Take(&r.ticket); taken {
		r.holds = true
		return nil
	}
	return r.await(ctx)
}

// pay waits until strangers may be sent as much as the next object is expected to be.
// No turn is held meanwhile, nor anything read. The caller holds turn.
func (r *responder) pay(ctx context.Context) error {
	booked := r.in.x.strangers.ReserveN(time.Now(), min(r.ticket.Size, strangersBurst))
	due := time.NewTimer(booked.Delay())
	defer due.Stop()
	err := waitFor(ctx, r, due.C)
	if err != nil {
		booked.Cancel()
	}
	return err
}

// yield gives the turn back unused. The caller holds turn.
func (r *responder) yield() {
	if r.holds {
		r.holds = false
		r.in.x.turns.Forgo(&r.ticket)
	}
}

func (r *responder) Data(ctx context.Context, index uint64, o Object) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	if err := r.takeTurn(ctx); err != nil {
		return fmt.Errorf("answer %d: %w", index, err)
	}
	r.mu.Lock()
	left, err := r.strike(index)
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("answer %d: %w", index, err)
	}
	if err := r.write(index, o); err != nil {
		return fmt.Errorf("answer %d: %w", index, err)
	}
	if left == 0 {
		return nil
	}
	return r.takeTurn(ctx)
}

// Room lends memory for one object; see Responder.
func (r *responder) Room(size int) []byte {
	r.turn.Lock()
	defer r.turn.Unlock()
	if r.room == nil || cap(*r.room) < bodyOffset+size {
		r.leaveRoom()
		r.room = r.in.x.codec.pool.Get(bodyOffset + size)
	}
	return (*r.room)[bodyOffset : bodyOffset : bodyOffset+size]
}

// leaveRoom gives back what Room lent. The caller holds turn.
func (r *responder) leaveRoom() {
	if r.room != nil {
		r.in.x.codec.pool.Put(r.room)
		r.room = nil
	}
}

// around returns the room that a body lies in, nil if it lies elsewhere. The caller holds turn.
func (r *responder) around(body []byte) []byte {
	if r.room == nil || len(body) == 0 || &(*r.room)[bodyOffset] != &body[0] {
		return nil
	}
	return (*r.room)[bodyOffset-headSize : bodyOffset+len(body)]
}

// strike marks indexes as answered, and returns how many are left. The caller holds mu.
func (r *responder) strike(indexes ...uint64) (left int, err error) {
	if r.ended {
		return 0, errEnded
	}
	for _, index := range indexes {
		if !r.pending.answer(index) {
			return 0, fmt.Errorf("%w: index %d was not asked for, or was answered", content.ErrInvalid, index)
		}
	}
	if r.pending.left == 0 {
		r.ended = true
		r.in.end(r.id)
	}
	return r.pending.left, nil
}

// write sends one object and ends the turn: from here the link's window, not the
// turns, says how much goes out at once. The caller holds turn.
func (r *responder) write(index uint64, o Object) error {
	x, l := r.in.x, r.in.asker.link
	size, room := len(o.Body), r.around(o.Body)
	d := wire.Data{Index: index, Raw: size, Stored: size, Page: len(o.Page), Spare: x.spare()}
	effort := link.None
	if !o.Dense { // else it would be in vain, and a link looks slow where a processor is
		effort = l.Compress(size)
	}
	if effort > link.None {
		if b := x.codec.compress(o.Body, effort); b != nil {
			defer x.codec.pool.Put(b)
			o.Body, room, d.Codec, d.Stored = *b, nil, wire.CodecZstd, len(*b)
		} else {
			l.Incompressible()
		}
	}
	if err := x.cfg.Allow(d.Size()); err != nil {
		r.yield()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = true
		r.in.end(r.id)
		return errors.Join(err, r.in.send(r.id, wire.Error{Kind: wire.KindBusy}))
	}
	booked := r.ticket.Size
	r.holds = false
	x.turns.Give(&r.ticket, d.Size())
	r.ticket.Size = d.Size()
	at := time.Now()
	err := r.in.sendData(r.id, d, o, room, func(size int) bool { return l.Send(&r.in.out, booked, size, at) })
	if err == nil {
		x.metrics.sent.WithLabelValues(r.ticket.Priority.String()).Add(float64(d.Size()))
		x.traffic.sent(r.ticket.Peer, r.role, d.Size())
	}
	return err
}

// Absent answers indexes that are not here.
func (r *responder) Absent(indexes ...uint64) error { return r.absent(wire.Absent{Indexes: indexes}) }

func (r *responder) Nowhere(indexes ...uint64) error {
	return r.absent(wire.Absent{Indexes: indexes, Nowhere: true})
}

func (r *responder) absent(m wire.Absent) error {
	if len(m.Indexes) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.strike(m.Indexes...); err != nil {
		return fmt.Errorf("answer absent: %w", err)
	}
	return r.in.send(r.id, m)
}

// Queued gives the turn back.
func (r *responder) Queued(position int) error {
	r.turn.Lock()
	r.yield()
	r.leaveRoom()
	r.turn.Unlock()
	return r.tell(wire.Queued{Position: uint32(max(0, position))})
}

// Progress tells the asker that waiting is not in vain.
func (r *responder) Progress() error { return r.tell(wire.Progress{}) }

func (r *responder) tell(m wire.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return errEnded
	}
	return r.in.send(r.id, m)
}

func (r *responder) Refer(to peer.ID) error {
	return r.endWith(wire.Refer{Peer: to, Addrs: r.in.x.addrs(to)})
}

// addrs are where a peer is to be found, those first that anybody may reach.
func (x *Exchange) addrs(of peer.ID) (addrs []ma.Multiaddr) {
	if of == x.cfg.Host.ID() {
		return nil
	}
	known := x.cfg.Host.Peerstore().Addrs(of)
	for _, public := range []bool{true, false} {
		for _, a := range known {
			if manet.IsPublicAddr(a) == public && len(a.Bytes()) <= wire.AddrMax && len(addrs) < wire.AddrsMax {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

func (r *responder) Unknown() error { return r.endWith(wire.Unknown{}) }

func (r *responder) drop() { _ = r.endWith(wire.Error{Kind: wire.KindCanceled}) }

// endWith ends the request, once data on its way has been written.
func (r *responder) endWith(m wire.Message) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	r.yield()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return errEnded
	}
	r.ended = true
	r.in.end(r.id)
	return r.in.send(r.id, m)
}

// finish ends what the Server left open, and gives the turn back.
func (r *responder) finish(ctx context.Context) {
	if errors.Is(context.Cause(ctx), errCanceled) {
		r.drop()
		return
	}
	r.turn.Lock()
	r.yield()
	r.leaveRoom()
	r.turn.Unlock()
	r.mu.Lock()
	rest := r.pending.rest()
	r.mu.Unlock()
	_ = r.Absent(rest...)
}
