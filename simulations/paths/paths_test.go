// Package paths tests on what ways members reach each other: real nodes on hosts whose
// networks change, translate, filter, or know IPv6 alone.
package paths

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
	"github.com/grangemesh/grange/simulations/soak"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// everywhere are the flags of a node that listens on all of its addresses.
func everywhere() []string {
	return []string{"--listen", "/ip4/0.0.0.0/tcp/4001,/ip6/::/tcp/4001", "--farm-bind", ":7946"}
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), lab.Command(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range l.Nodes() {
				t.Logf("── %s\n%s", n.Name, n.Tail(25))
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// start starts a node on a farm's LAN.
func start(t *testing.T, l *lab.Lab, farm string, extra ...string) *lab.Node {
	t.Helper()
	n, err := l.Start(t.Context(), farm, "", extra...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// await waits until something holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	defer func() { t.Logf("%s: after %s", what, time.Since(began).Round(time.Millisecond)) }()
	for late := time.After(2 * time.Minute); !holds(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within two minutes", what)
		}
	}
}

// run runs a command of the command line against a node, which is to succeed.
func run(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// get asks a node's API.
func get[T any](t *testing.T, n *lab.Node, path string) (v T) {
	t.Helper()
	if err := n.Get(t.Context(), path, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// ip runs lines of the ip command inside a host's network, at once.
func ip(t *testing.T, h *netns.Host, lines ...string) {
	t.Helper()
	cmd := h.Command(t.Context(), "/usr/sbin/ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
}

// publish imports a small image on a node.
func publish(t *testing.T, n *lab.Node, name string) {
	t.Helper()
	raw := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", name)))).Read(raw)
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, n, "image", "import", name, path, "--scope", "public")
}

// peer is what a node says of another.
func peer(t *testing.T, n, other *lab.Node) (p api.Peer) {
	t.Helper()
	id := get[api.Status](t, other, "/api/status").Self.ID
	for _, p := range get[api.Peers](t, n, "/api/peers").Peers {
		if p.ID == id {
			return p
		}
	}
	return p
}

// recordsMax is what a node may read of the origin that has every chunk from others: as
// the lead of some names it reads their records.
const recordsMax = 64 << 10

// warm has a node read an image, none of which may come from the origin.
func warm(t *testing.T, n *lab.Node, name string) {
	t.Helper()
	if n == n.Lab().Nodes()[0] {
		return // it has imported it
	}
	run(t, n, "image", "warm", name)
	if b, err := n.Bytes(t.Context()); err != nil || b.Origin > recordsMax {
		t.Errorf("%s has %+v, %v", n.Name, b, err)
	}
}

// TestInterfacesComeAndGo: sandboxes' wires and networks appear and vanish on a host whose
// node serves others. Nobody loses a connection, nor is told of the wires.
func TestInterfacesComeAndGo(t *testing.T) {
	l := newLab(t)
	first := start(t, l, "a", everywhere()...)
	near, far := start(t, l, "a", everywhere()...), start(t, l, "b", everywhere()...)
	others := []*lab.Node{near, far}
	publish(t, first, "warmup")
	paths := map[*lab.Node]string{}
	for _, n := range others {
		warm(t, n, "warmup")
		await(t, "a connection", func() bool { return peer(t, first, n).Path != "" })
		paths[n] = peer(t, first, n).Path
	}
	const batch = 20
	for round := range soak.Of(3, 1000/batch) {
		var add, remove []string
		for i := range batch {
			at := fmt.Sprintf("10.200.%d.%d", round, 1+4*i)
			bits := 30
			if i%5 == 0 { // a network of its own, which may well lead somewhere
				at, bits = fmt.Sprintf("10.%d.%d.1", 201+round%50, i), 24
			}
			add = append(add, fmt.Sprintf("link add v%d type veth peer name w%d", i, i), fmt.Sprintf("addr add %s/%d dev v%d", at, bits, i), fmt.Sprintf("link set v%d up", i), fmt.Sprintf("link set w%d up", i))
			remove = append(remove, fmt.Sprintf("link del v%d", i))
		}
		ip(t, first.Host, add...)
		name := fmt.Sprintf("disk%d", round)
		publish(t, first, name)
		for _, n := range others {
			warm(t, n, name)
		}
		if round%10 == 0 { // long enough for everybody to have heard
			for range 5 {
				run(t, first, "status", "--wait", "5s")
				for _, a := range get[api.Peers](t, first, "/api/peers").Self.Addrs {
					if strings.Contains(a, "/10.200.") {
						t.Fatalf("told of a wire: %s", a)
					}
				}
			}
		}
		ip(t, first.Host, remove...)
		for _, n := range others {
			if now := peer(t, first, n).Path; now != paths[n] {
				t.Fatalf("round %d: %s was connected as %s, and is as %q", round, n.Name, paths[n], now)
			}
		}
	}
	for _, n := range l.Nodes() {
		if lost, err := n.Metric(t.Context(), "grange_farm_lost_members_total"); err != nil || lost > 0 {
			t.Errorf("%s has lost %v members, %v", n.Name, lost, err)
		}
	}
}

// TestANodeThatMoves has its host be given another address, which nobody expects, and is
// found again by its farm and by others; so is the one that all began with.
func TestANodeThatMoves(t *testing.T) {
	l := newLab(t)
	first := start(t, l, "a", everywhere()...)
	second, far := start(t, l, "a", everywhere()...), start(t, l, "b", everywhere()...)
	await(t, "all are connected", func() bool {
		return peer(t, first, second).State == "alive" && peer(t, first, far).Path != "" && peer(t, second, first).State == "alive"
	})
	for i, moves := range []*lab.Node{second, first} {
		old := moves.Host.Addr().String()
		if err := moves.Host.Move(t.Context()); err != nil {
			t.Fatal(err)
		}
		now := moves.Host.Addr().String()
		stays := []*lab.Node{first, second}[i]
		await(t, "the farm finds it", func() bool {
			p, back := peer(t, stays, moves), peer(t, moves, stays)
			return p.State == "alive" && back.State == "alive" && slices.ContainsFunc(p.Addrs, func(a string) bool { return strings.Contains(a, now+"/") })
		})
		await(t, "it says so", func() bool {
			return strings.HasPrefix(get[api.Status](t, moves, "/api/status").Self.FarmAddr, now+":")
		})
		name := fmt.Sprintf("disk%d", i)
		publish(t, first, name)
		for _, n := range []*lab.Node{stays, far, moves} {
			warm(t, n, name)
			if n == moves {
				continue
			}
			await(t, "a connection with the new address", func() bool {
				a, b := peer(t, moves, n), peer(t, n, moves)
				return a.Path != "" && b.Path != "" && !strings.Contains(b.Path, old+"/")
			})
		}
	}
}
