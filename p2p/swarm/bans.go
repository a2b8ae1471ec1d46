package swarm

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// bansMax bounds the list; beyond it some ban or other is forgotten, which costs
// its member another lie to be banned again.
const bansMax = 10_000

// bans refuses connections with members that lied, for a while each, and with those
// that were revoked. It is the
// gate that libp2p asks; of what it asks, only what names the peer is refused.
type bans struct {
	mu      sync.Mutex // guards what follows
	until   map[peer.ID]time.Time
	refused map[peer.ID]bool // for good
}

func newBans() *bans { return &bans{until: map[peer.ID]time.Time{}} }

func (b *bans) add(id peer.ID, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for other := range b.until {
		if len(b.until) < bansMax {
			break
		}
		delete(b.until, other)
	}
	b.until[id] = time.Now().Add(d)
}

// refuse replaces those that are refused for good.
func (b *bans) refuse(ids map[peer.ID]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused = ids
}

func (b *bans) has(id peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refused[id] {
		return true
	}
	until, ok := b.until[id]
	if ok && time.Now().After(until) {
		delete(b.until, id)
		return false
	}
	return ok
}

// count is of those that have not ended, as far as anyone has asked.
func (b *bans) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.until)
}

// InterceptPeerDial implements connmgr.ConnectionGater.
func (b *bans) InterceptPeerDial(id peer.ID) bool { return !b.has(id) }

// InterceptAddrDial implements connmgr.ConnectionGater.
func (b *bans) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

// InterceptAccept implements connmgr.ConnectionGater.
func (b *bans) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured implements connmgr.ConnectionGater.
func (b *bans) InterceptSecured(_ network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	return !b.has(id)
}

// InterceptUpgraded implements connmgr.ConnectionGater.
func (b *bans) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
