package swarm

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/semaphore"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/identity"
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

const (
	// proveTimeout bounds the wait for a peer's proof: a connection, and a round trip.
	proveTimeout = 2 * time.Second
	// doubtFor is how long one that could not is not asked again, so that strangers
	// cost little. One that proves itself of its own accord is believed at once.
	doubtFor = 10 * time.Second
	// doubtsMax bounds those that are remembered; beyond it some are asked again.
	doubtsMax = 4096
	// provingMax bounds the proofs that are waited for, each by a stream or a search.
	provingMax = 128
)

// proofs says which peers are members of the mesh, and waits for them to prove it.
type proofs struct {
	proved func(peer.ID) bool
	prove  func(context.Context, peer.ID) bool
	places *semaphore.Weighted // for who waits

	mu     sync.Mutex            // guards doubts
	doubts map[peer.ID]time.Time // until when
}

func newProofs(proved func(peer.ID) bool, prove func(context.Context, peer.ID) bool) *proofs {
	return &proofs{proved: proved, prove: prove, places: semaphore.NewWeighted(provingMax), doubts: map[peer.ID]time.Time{}}
}

// wait reports whether a peer is a member. One that has not proved it yet is given
// proveTimeout, and then nobody waits for it for a while.
func (p *proofs) wait(ctx context.Context, id peer.ID) bool {
	if p.proved(id) {
		return true
	}
	if p.prove == nil || p.doubted(id) || !p.places.TryAcquire(1) {
		return false
	}
	defer p.places.Release(1)
	late, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	ok := p.prove(late, id)
	if !ok && ctx.Err() == nil {
		p.doubt(id)
	}
	return ok
}

// doubted reports whether a peer could not prove itself a while ago.
func (p *proofs) doubted(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.doubts[id])
}

// doubt remembers a peer that could not prove itself.
func (p *proofs) doubt(id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for other := range p.doubts {
		if len(p.doubts) < doubtsMax {
			break
		}
		delete(p.doubts, other)
	}
	p.doubts[id] = time.Now().Add(doubtFor)
}

// doorkeeper is what libp2p asks whom to connect with, where that names the peer.
type doorkeeper struct{ ledger *identity.Ledger }

// InterceptPeerDial implements connmgr.ConnectionGater.
func (d doorkeeper) InterceptPeerDial(id peer.ID) bool { return !d.ledger.ShutOut(id) }

// InterceptAddrDial implements connmgr.ConnectionGater.
func (doorkeeper) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

// InterceptAccept implements connmgr.ConnectionGater.
func (doorkeeper) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured implements connmgr.ConnectionGater.
func (d doorkeeper) InterceptSecured(_ network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	return !d.ledger.ShutOut(id)
}

// InterceptUpgraded implements connmgr.ConnectionGater.
func (doorkeeper) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
