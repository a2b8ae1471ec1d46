package exchange

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// Identity returns who a peer is, as the certificate that it has shown says, asking or
// asked; false for one that has not proved itself. It does not wait, see Meet.
func (x *Exchange) Identity(id peer.ID) (trust.Identity, bool) { return x.ledger.Of(id) }

// Meet is Identity that waits: if the peer has not proved itself yet, the control
// stream is opened, and its hello waited for. A peer without a good certificate is
// content.ErrForbidden, one that can't be reached or is silent content.ErrUnavailable.
func (x *Exchange) Meet(ctx context.Context, id peer.ID) (trust.Identity, error) {
	if who, ok := x.ledger.Of(id); ok {
		return who, nil
	}
	o, err := x.session(id).lane(ctx, wire.LaneControl)
	if err == nil {
		err = o.met(ctx)
	}
	who, ok := x.ledger.Of(id)
	switch {
	case err != nil:
		return trust.Identity{}, fmt.Errorf("meet %s: %w", id, err)
	case !ok: // it has lost it again
		return trust.Identity{}, fmt.Errorf("meet %s: %w: its certificate is not good any more", id, content.ErrForbidden)
	}
	return who, nil
}

// met waits until the asked has proved who it is.
func (o *outbound) met(ctx context.Context) error {
	if _, ok := o.session.x.ledger.Of(o.session.peer); ok {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, StallTimeout, fmt.Errorf("hello: %w", ErrStalled))
	defer cancel()
	select {
	case <-o.greeted:
		return o.refused
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// present takes the chain that a peer shows. See identity.Ledger.Present.
func (x *Exchange) present(id peer.ID, chain []byte) error {
	fresh, err := x.ledger.Present(id, chain)
	if err != nil && len(chain) > 0 {
		x.note.Do(func() { x.cfg.Log.Warn("peer is treated as a stranger", "peer", id, "err", err) })
	}
	if fresh {
		x.cfg.OnProved(id)
	}
	return err
}

// Recheck verifies the certificates of all peers again: Run calls it once in a while,
// and whoever told the verifier of a revocation at once. The streams of peers whose
// certificate is good no more are ended, in both directions, and Config.OnLost is told.
func (x *Exchange) Recheck() {
	for _, id := range x.ledger.Recheck() {
		x.cfg.Log.Warn("a peer's certificate is not good any more; its streams are ended", "peer", id)
		if a := x.askers.find(id); a != nil {
			a.drop()
		}
		x.mu.Lock()
		s := x.sessions[id]
		x.mu.Unlock()
		if s != nil {
			s.close(fmt.Errorf("%w: the peer's certificate is not good any more", ErrDisconnected))
		}
		x.cfg.OnLost(id)
	}
}

// connected reports whether there is a connection with a peer.
func (x *Exchange) connected(id peer.ID) bool {
	return x.cfg.Host.Network().Connectedness(id) != network.NotConnected
}

// begin sends a request on a lane, to a peer that has proved who it is and to no other.
func (s *session) begin(ctx context.Context, l wire.Lane, p *pending, m wire.Message) (*outbound, uint32, error) {
	for {
		o, err := s.lane(ctx, l)
		if err == nil {
			err = o.met(ctx)
		}
		if errors.Is(err, content.ErrForbidden) { // nobody has forbidden us anything
			err = fmt.Errorf("%w: the peer has not proved who it is: %v", content.ErrUnavailable, err)
		}
		if err != nil {
			return nil, 0, err
		}
		id, err := o.begin(p, m)
		if !errors.Is(err, errQuiet) {
			return o, id, err
		}
	}
}
