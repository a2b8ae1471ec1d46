package paths

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/p2p/swarm"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestAFarmOnIPv6Alone: hosts that have no IPv4 address form a farm, untold, and serve one
// another and a farm elsewhere; tokens and gossip carry what they have.
func TestAFarmOnIPv6Alone(t *testing.T) {
	l := newLab(t)
	l.Untold = true
	for _, lan := range []string{"a", "b"} {
		if err := l.Net.IPv6(t.Context(), lan); err != nil {
			t.Fatal(err)
		}
	}
	first := start(t, l, "a", "--farm-bind", ":7946")
	second, far := start(t, l, "a", "--farm-bind", "[::]:7946"), start(t, l, "b", "--farm-bind", ":7946")
	for _, n := range []*lab.Node{first, second} {
		await(t, "the farm forms", func() bool { return len(get[api.Status](t, n, "/api/status").Farm) == 1 })
		self := get[api.Status](t, n, "/api/status").Self
		if at, err := netip.ParseAddrPort(self.FarmAddr); err != nil || at.Addr() != n.Host.Addr() {
			t.Errorf("it gossips at %s, not at %s", self.FarmAddr, n.Host.Addr())
		}
	}
	publish(t, first, "disk")
	for _, n := range []*lab.Node{second, far} {
		warm(t, n, "disk")
	}
	if p := peer(t, far, first); p.Way != swarm.Direct || !strings.HasPrefix(p.Path, "/ip6/") {
		t.Errorf("the other farm's way is %+v", p)
	}
	if p := peer(t, second, first); p.Way != swarm.LAN {
		t.Errorf("a neighbour's way is %+v", p)
	}
}

// fromAll are the flags of a node that listens as it does when told nothing.
func fromAll() []string {
	return []string{"--listen", "/ip4/0.0.0.0/tcp/4001,/ip6/::/tcp/4001,/ip4/0.0.0.0/udp/4001/quic-v1,/ip6/::/udp/4001/quic-v1", "--farm-bind", ":7946"}
}

// TestNodesBehindOneAddress: a farm behind a NAT, of which the world sees one address, is
// served by a member outside; and the way of each is shown.
func TestNodesBehindOneAddress(t *testing.T) {
	l := newLab(t)
	if err := l.Net.Public(t.Context(), "world"); err != nil {
		t.Fatal(err)
	}
	router, err := l.Net.NAT(t.Context(), "home", "world")
	if err != nil {
		t.Fatal(err)
	}
	outside := "11.77.1.3" // the first host after the router
	first := start(t, l, "world", slices.Concat(fromAll(), []string{"--announce", fmt.Sprintf("/ip4/%s/tcp/4001,/ip4/%s/udp/4001/quic-v1", outside, outside)})...)
	if at := first.Host.Addr().String(); at != outside {
		t.Fatalf("the member outside is at %s", at)
	}
	publish(t, first, "disk")
	var inside []*lab.Node
	for range soak.Of(4, 64) {
		inside = append(inside, start(t, l, "home", fromAll()...))
	}
	for _, n := range inside { // each asks the one outside itself
		await(t, "a connection with the member outside", func() bool { return peer(t, n, first).Way == swarm.Direct })
	}
	var all errgroup.Group
	for _, n := range inside {
		all.Go(func() error {
			_, err := n.Run(t.Context(), "image", "warm", "disk")
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, n := range inside {
		p := peer(t, first, n)
		if p.Way != swarm.LAN && p.Way != swarm.Direct || !strings.Contains(p.Path, "/"+router.Addr().String()+"/") {
			t.Errorf("%s is seen as %+v", n.Name, p)
		}
		if b, err := n.Bytes(t.Context()); err != nil || b.Farm+b.Swarm == 0 || b.Origin > recordsMax {
			t.Errorf("%s has %+v, %v", n.Name, b, err)
		}
		if near := get[api.Status](t, n, "/api/status").Farm; len(near) != len(inside)-1 {
			t.Errorf("%s sees %d neighbours of %d", n.Name, len(near), len(inside)-1)
		}
	}
}
