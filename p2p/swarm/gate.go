package swarm

import (
	"context"
	"fmt"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/origin/content"
)

// gatedHost is the host that the DHT sees: strangers' requests and records do not reach
// it, nor do its own go to strangers. It waits for who has not proved itself yet.
type gatedHost struct {
	host.Host
	proofs *proofs
}

// errStranger is for who has not proved that it is a member.
var errStranger = fmt.Errorf("%w: the peer has not proved that it is a member", content.ErrForbidden)

// NewStream implements host.Host.
func (h gatedHost) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	if !h.proofs.wait(ctx, id) {
		return nil, fmt.Errorf("ask %s: %w", id, errStranger)
	}
	return h.Host.NewStream(ctx, id, protocols...)
}

// SetStreamHandler implements host.Host.
func (h gatedHost) SetStreamHandler(id protocol.ID, serve network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) {
		ctx, cancel := context.WithTimeout(context.Background(), proveTimeout) // a handler has no other
		defer cancel()
		if !h.proofs.wait(ctx, s.Conn().RemotePeer()) {
			s.Reset()
			return
		}
		serve(s)
	})
}

// relayedHost is the host that the exchange sees: relays, being ours, carry content.
type relayedHost struct{ host.Host }

// NewStream implements host.Host.
func (h relayedHost) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	return h.Host.NewStream(network.WithAllowLimitedConn(ctx, "content"), id, protocols...)
}

// relayGate relays between members.
type relayGate struct{ proofs *proofs }

// AllowReserve implements relay.ACLFilter.
func (g relayGate) AllowReserve(id peer.ID, _ ma.Multiaddr) bool {
	ctx, cancel := context.WithTimeout(context.Background(), proveTimeout) // the relay gives no other
	defer cancel()
	return g.proofs.wait(ctx, id)
}

// AllowConnect implements relay.ACLFilter.
func (g relayGate) AllowConnect(from peer.ID, a ma.Multiaddr, to peer.ID) bool {
	return g.AllowReserve(from, a) && g.proofs.proved(to) // who reserved a place has proved itself
}
