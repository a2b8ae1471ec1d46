package paths

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/p2p/swarm"
	"github.com/grangemesh/grange/simulations/lab"
)

// TestPingTellsTheWay: `grange ping` finds a neighbour on the LAN, a member elsewhere, one
// behind a NAT without UDP through a relay, and one that is gone not at all; its exit code
// says which.
func TestPingTellsTheWay(t *testing.T) {
	l := newLab(t)
	if err := l.Net.Public(t.Context(), "world"); err != nil {
		t.Fatal(err)
	}
	first := start(t, l, "world", slices.Concat(fromAll(), []string{"--announce", "/ip4/11.77.1.2/tcp/4001,/ip4/11.77.1.2/udp/4001/quic-v1"})...)
	near := start(t, l, "world", fromAll()...)
	var hidden []*lab.Node
	for _, name := range []string{"home", "cellar"} {
		router, err := l.Net.NAT(t.Context(), name, "world")
		if err == nil {
			err = router.BlockUDP(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		hidden = append(hidden, start(t, l, name, fromAll()...))
	}
	ping := func(from *lab.Node, to string, args ...string) (string, int) {
		t.Helper()
		said, code, err := l.Exec(t.Context(), from.Host, nil, append([]string{"ping", to, "--data", from.Data}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return said, code
	}
	self := func(n *lab.Node) api.Self { return get[api.Status](t, n, "/api/status").Self }
	for _, x := range []struct {
		to   string
		code int
		way  swarm.Way
	}{
		{self(near).ID, 0, swarm.LAN},
		{self(near).ID[:len(self(near).ID)-4], 0, swarm.LAN},
	} {
		if said, code := ping(first, x.to, "-c", "2"); code != x.code || !strings.Contains(said, string(x.way)+", at ") || strings.Count(said, " ms\n") != 2 {
			t.Errorf("%s: code %d: %s", x.to, code, said)
		}
	}
	for _, to := range []string{self(first).ID, fmt.Sprintf("/ip4/%s/tcp/4001/p2p/%s", first.Host.Addr(), self(first).ID)} {
		if said, code := ping(hidden[0], to); code != 10 || !strings.Contains(said, "direct, at /ip4/11.77.1.2/") {
			t.Errorf("%s: code %d: %s", to, code, said)
		}
	}
	for _, n := range hidden {
		await(t, "a place at the relay", func() bool { return strings.Contains(fmt.Sprint(self(n).Addrs), "/p2p-circuit/") })
	}
	if said, code := ping(hidden[0], self(hidden[1]).ID); code != 11 || !strings.Contains(said, "relayed, at ") {
		t.Errorf("code %d: %s", code, said)
	}
	if said, code := ping(hidden[0], "nobody"); code != 1 || !strings.Contains(said, "mesh members") {
		t.Errorf("nobody: code %d: %s", code, said)
	}
	gone := self(hidden[1]).ID
	if err := hidden[1].Kill(); err != nil {
		t.Fatal(err)
	}
	if said, code := ping(hidden[0], gone, "--timeout", "5s"); code != 1 || !strings.Contains(said, "ping "+gone) {
		t.Errorf("code %d: %s", code, said)
	}
}
