package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

// inNetwork runs commands inside a host's network.
func inNetwork(ctx context.Context, h *netns.Host, commands ...string) error {
	for _, c := range commands {
		words := strings.Fields(c)
		if out, err := h.Command(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return nil
}

// await waits until something holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); !holds(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// joinWithin is how long a join past dead addresses may take, with the start and the
// stop of the processes: a dead one alone takes libp2p five seconds, and eight of them
// at a time.
const joinWithin = 15 * time.Second

// TestJoinPastDeadAddresses: forty addresses at which nobody is come before the good one,
// of the same member, and of as many that are gone.
func TestJoinPastDeadAddresses(t *testing.T) {
	l := newLab(t)
	sinks := map[netip.Prefix]netip.Addr{} // where what is sent is lost
	lanOf := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 24).Masked() }
	for _, lan := range []string{"a", "b"} {
		sink, err := l.Net.Host(t.Context(), lan)
		if err == nil {
			err = inNetwork(t.Context(), sink, "sysctl -qw net.ipv4.ip_forward=0")
		}
		if err != nil {
			t.Fatal(err)
		}
		sinks[lanOf(sink.Addr())] = sink.Addr()
	}
	l.Prepare = func(ctx context.Context, h *netns.Host) error {
		return inNetwork(ctx, h, "ip route add 10.55.0.0/16 via "+sinks[lanOf(h.Addr())].String())
	}
	var dead, gone []string
	for i := range 40 {
		at := fmt.Sprintf("/ip4/10.55.0.%d/tcp/4001", 1+i)
		id := identity.PeerID(trust.NewPrivateKey().Public())
		dead, gone = append(dead, at), append(gone, at+"/p2p/"+id.String())
	}
	first, err := l.Start(t.Context(), "a", "", "--announce", strings.Join(dead, ","))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name, lan string
		others    []string
	}{{"in its subnet", "a", nil}, {"in another", "b", nil}, {"in another, and dead members", "b", gone}} {
		name, others := x.name, x.others
		token, err := trust.ParseToken(run(t, first, "token", "create", "--role", "node"), time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		own := slices.DeleteFunc(slices.Clone(token.Bootstrap), func(a string) bool { return strings.HasPrefix(a, "/ip4/10.55.") })
		token.Bootstrap = slices.Concat(others, slices.DeleteFunc(token.Bootstrap, func(a string) bool { return slices.Contains(own, a) }), own)
		if len(own) != 1 || len(token.Bootstrap) != 41+len(others) {
			t.Fatalf("a token with %d addresses, %v", len(token.Bootstrap), own)
		}
		ctx, cancel := context.WithTimeout(t.Context(), joinWithin)
		begun := time.Now()
		n, err := l.Start(ctx, x.lan, "", "--join", token.String())
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%s: ready after %s", name, time.Since(begun).Round(10*time.Millisecond))
		await(t, "the admin", func() bool { return len(get[api.Peers](t, n, "/api/peers").Peers) > 0 })
	}
	await(t, "the neighbour", func() bool { return len(get[api.Status](t, l.Nodes()[1], "/api/status").Farm) > 0 })
	if addrs := get[api.Status](t, l.Nodes()[1], "/api/status").Farm[0].Addrs; len(addrs) == 0 || !strings.HasPrefix(addrs[0], "/ip4/10.77.") {
		t.Errorf("gossip carries first %v", addrs)
	}
}

// onBridges has each host have a bridge to containers, as docker makes it, and no way out.
func onBridges(ctx context.Context, h *netns.Host) error {
	return inNetwork(ctx, h, "ip link add docker0 type bridge", "ip addr add 172.17.0.1/16 dev docker0", "ip link set docker0 up", "ip route del default")
}

// TestHostsBehindContainerBridges: nodes that listen on all of their addresses, one of
// which both hosts have, find each other and tell of none but the LAN's; where it can't
// be told which that is, nothing is founded.
func TestHostsBehindContainerBridges(t *testing.T) {
	l := newLab(t)
	l.Prepare = onBridges
	var nodes []*lab.Node
	for _, bind := range []string{":7946", "[::]:7946"} {
		n, err := l.Start(t.Context(), "a", "", "--listen", "/ip4/0.0.0.0/tcp/4001,/ip6/::/tcp/4001", "--farm-bind", bind, "--name", fmt.Sprintf("db%d", 1+len(nodes)))
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		await(t, "the neighbour", func() bool { return len(get[api.Status](t, n, "/api/status").Farm) == 1 })
		s := get[api.Status](t, n, "/api/status")
		told := append(slices.Concat(s.Self.Addrs, s.Farm[0].Addrs), s.Self.FarmAddr)
		for _, a := range told {
			if !strings.Contains(a, "10.77.1.") {
				t.Errorf("%s tells of %s", n.Name, a)
			}
		}
	}
	refuseAmbiguous(t, l)
	lostMember(t, nodes)
}

// refuseAmbiguous starts nodes on hosts of several addresses, and of none.
func refuseAmbiguous(t *testing.T, l *lab.Lab) {
	t.Helper()
	host, err := l.Net.Host(t.Context(), "a")
	if err == nil {
		err = errors.Join(onBridges(t.Context(), host), inNetwork(t.Context(), host, "ip addr add 10.88.0.5/24 dev eth0"))
	}
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(l.Dir, "ambiguous")
	again := func(what string, says ...string) {
		refuse(t, l, host, []refusal{{what: what, args: []string{"node", "--data", data, "--farm-bind", ":7946"}, says: append(says, "--farm-bind")}})
		if left, err := filepath.Glob(filepath.Join(data, "*.key")); err != nil || len(left) > 0 {
			t.Errorf("%s: %v is left, %v", what, left, err)
		}
	}
	again("several addresses", host.Addr().String(), "10.88.0.5", "eth0")
	if err := host.Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	again("a bridge alone", "none but")
}

// lostMember kills the second node, which holds a volume.
func lostMember(t *testing.T, nodes []*lab.Node) {
	t.Helper()
	first, second := nodes[0], nodes[1]
	id := get[api.Status](t, second, "/api/status").Self.ID
	run(t, second, "volume", "create", "web1", "--size", "1MiB", "--transport", "nbd")
	await(t, "the member's name is known", func() bool { return strings.Contains(run(t, first, "mesh", "peers"), "db2") })
	await(t, "the path to the member", func() bool { return strings.Contains(run(t, first, "mesh", "members"), second.Host.Addr().String()) })
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the loss is a line in the log", func() bool {
		return slices.ContainsFunc(strings.Split(first.Tail(50), "\n"), func(line string) bool {
			return strings.Contains(line, "a member of the farm is lost") && strings.Contains(line, "name=db2") && strings.Contains(line, id)
		})
	})
	hood := get[api.Status](t, first, "/api/status").Neighbourhood
	if hood.State != node.FarmCutOff || !strings.Contains(hood.Detail, "db2") {
		t.Errorf("the farm is %+v", hood)
	}
	if out, err := first.Run(t.Context(), "doctor"); err == nil || !strings.Contains(out, "BAD  farm") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"rm", "web1"}, {"show", "web1"}, {"create", "web1", "--size", "1MiB"}} {
		if _, err := first.Run(t.Context(), append([]string{"volume"}, args...)...); err == nil || !strings.Contains(err.Error(), "db2 ("+id+") of farm a") || !strings.Contains(err.Error(), "--force") {
			t.Errorf("volume %s: %v", strings.Join(args, " "), err)
		}
	}
	run(t, first, "volume", "rm", "web1", "--force")
	run(t, first, "volume", "create", "web1", "--size", "1MiB", "--transport", "nbd")
}

// TestAnnouncedThroughPortForward: the founder is behind a router that forwards a port,
// and nobody outside reaches its own address. Its token carries the announced one, which
// is kept.
func TestAnnouncedThroughPortForward(t *testing.T) {
	l := newLab(t)
	inside, err := l.Net.Host(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	outside, err := l.Net.Host(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	l.Prepare = func(ctx context.Context, h *netns.Host) error {
		return inNetwork(ctx, h, "ip route replace blackhole default") // its LAN alone
	}
	listener, err := outside.Listen(t.Context(), "tcp", outside.Addr().String()+":14001")
	if err != nil {
		t.Fatal(err)
	}
	first, err := l.Start(t.Context(), "a", "", "--announce", fmt.Sprintf("/ip4/%s/tcp/14001", outside.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	forward(t, listener, func() (net.Conn, error) {
		return inside.Dial(context.WithoutCancel(t.Context()), "tcp", first.Host.Addr().String()+":4001")
	})
	ctx, cancel := context.WithTimeout(t.Context(), joinWithin)
	defer cancel()
	second, err := l.Start(ctx, "b", "")
	if err != nil {
		t.Fatal(err)
	}
	reached := func() bool {
		p := get[api.Peers](t, second, "/api/peers").Peers
		return len(p) == 1 && p[0].Path == fmt.Sprintf("/ip4/%s/tcp/14001", outside.Addr()) && p[0].Role == trust.RoleAdmin && p[0].Farm == "a"
	}
	await(t, "the founder is reached", reached)
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := second.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the founder is reached again", reached)
	if said := first.Tail(50); !strings.Contains(said, "a member joined") {
		t.Errorf("the founder's log: %s", said)
	}
}

// forward carries connections until the test ends.
func forward(t *testing.T, l net.Listener, dial func() (net.Conn, error)) {
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	carry := func(to, from net.Conn) {
		context.AfterFunc(ctx, func() { from.Close() })
		group.Go(func() error {
			defer to.Close()
			_, _ = io.Copy(to, from) // it ends with either
			return nil
		})
	}
	group.Go(func() error {
		for {
			in, err := l.Accept()
			if err != nil {
				return nil
			}
			out, err := dial()
			if err != nil {
				in.Close()
				continue
			}
			carry(in, out)
			carry(out, in)
		}
	})
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(l.Close(), group.Wait()); err != nil {
			t.Error(err)
		}
	})
}
