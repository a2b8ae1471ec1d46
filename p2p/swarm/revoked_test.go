package swarm

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// TestRevokedCallersAreCounted, when they come, not when they are called.
func TestRevokedCallersAreCounted(t *testing.T) {
	good, bad := trust.NewPrivateKey().Public(), trust.NewPrivateKey().Public()
	v := trust.NewVerifier(trust.NewPrivateKey().Public())
	v.Revoke(map[trust.PublicKey]time.Time{bad: time.Now()})
	var n atomic.Int64
	d := doorkeeper{identity.New(v, time.Now), &n}
	for key, lets := range map[trust.PublicKey]bool{good: true, bad: false} {
		for _, from := range []network.Direction{network.DirInbound, network.DirOutbound} {
			if d.InterceptSecured(from, identity.PeerID(key), nil) != lets {
				t.Errorf("let in: %v", !lets)
			}
		}
	}
	if n.Load() != 1 {
		t.Errorf("%d are counted", n.Load())
	}
}
