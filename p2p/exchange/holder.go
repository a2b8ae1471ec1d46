package exchange

import (
	"context"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange/turns"
	"github.com/grangemesh/grange/p2p/wire"
)

// Holder keeps bytes that the volumes of other members have written, and knows them by their places only.
type Holder interface {
	// Take begins what m asks: a wire.Promise, Extend, Read, Cut, Drop or Status. It is called for the
	// requests of one stream in the order in which they came, and waits for no disk to sync: finish, called
	// beside, does, and returns what Ask returns to the asker. m is the callee's.
	Take(from Peer, m wire.Message) (finish func(context.Context) (*wire.Held, []byte, error))
}

// Ask sends a request of the journal lane: what one caller sends one after the other
// arrives in that order, as long as the stream lasts. finish waits for the end of the request, once: a
// Held, or the body of an answer. It is to be called, and an error of it may hide that the
// request was done. Errors keep the sentinel of package content.
func (x *Exchange) Ask(ctx context.Context, to peer.ID, m wire.Message) (finish func() (*wire.Held, []byte, error), err error) {
	s := x.session(to)
	place := turns.NewTicket(to, PriorityGuest)
	if err := s.journal.Wait(ctx, place); err != nil {
		return nil, err
	}
	p := newPending()
	p.give = func() { s.journal.Give(place, 0) }
	o, id, err := s.begin(ctx, wire.LaneJournal, p, m)
	if err != nil {
		p.give()
		return nil, fmt.Errorf("journal at %s: %w", to, err)
	}
	return func() (*wire.Held, []byte, error) {
		if err := o.await(ctx, id, p); err != nil {
			return nil, nil, fmt.Errorf("journal at %s: %w", to, err)
		}
		return p.held, p.answer, nil
	}, nil
}

// journal begins a request of the journal lane.
func (in *inbound) journal(ctx context.Context, id uint32, m wire.Message) error {
	if in.lane != wire.LaneJournal {
		return fmt.Errorf("%w: %T on lane %d", ErrViolation, m, in.lane)
	}
	ctx, err := in.begin(ctx, id, nil)
	if err != nil {
		return err
	}
	p, stranger := in.asker.peer(in.x)
	cost := costOf(m, 0)
	switch {
	case stranger || in.x.cfg.Holder == nil:
		return in.refuse(id, wire.ErrorOf(fmt.Errorf("%w: this member keeps no journal for you", content.ErrForbidden)))
	case !in.asker.spend(cost, stranger):
		return in.refuse(id, wire.Error{Kind: wire.KindBusy})
	}
	finish := in.x.cfg.Holder.Take(p, m)
	in.work(ctx, id, m, cost, func() wire.Message {
		held, body, err := finish(ctx)
		switch {
		case err != nil:
			return wire.ErrorOf(err)
		case held != nil:
			return *held
		}
		return wire.Answer{Body: body}
	})
	return nil
}
