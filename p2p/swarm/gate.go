package swarm

import (
	"context"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// gatedHost is the host that the DHT sees: strangers' requests and records do not
// reach it.
type gatedHost struct {
	host.Host
	admit func(peer.ID) bool
}

// SetStreamHandler implements host.Host.
func (h gatedHost) SetStreamHandler(id protocol.ID, serve network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) {
		if !h.admit(s.Conn().RemotePeer()) {
			s.Reset()
			return
		}
		serve(s)
	})
}

// relayedHost is the host that the exchange sees: its streams may go through a
// relay, for ours have room for content.
type relayedHost struct{ host.Host }

// NewStream implements host.Host.
func (h relayedHost) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	return h.Host.NewStream(network.WithAllowLimitedConn(ctx, "content"), id, protocols...)
}

// relayGate relays for those that are admitted.
type relayGate func(peer.ID) bool

// AllowReserve implements relay.ACLFilter.
func (admit relayGate) AllowReserve(id peer.ID, _ ma.Multiaddr) bool { return admit(id) }

// AllowConnect implements relay.ACLFilter.
func (admit relayGate) AllowConnect(from peer.ID, _ ma.Multiaddr, to peer.ID) bool {
	return admit(from) && admit(to)
}
