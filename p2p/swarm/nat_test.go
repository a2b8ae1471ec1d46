package swarm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/simulations/netns"
)

// The words between a test and a member that it plays in another network: a line of JSON
// each way.
type order struct {
	// Reach is a member to connect with, and to send Bytes to.
	Reach []string
	Bytes int
}

type report struct {
	Addrs   []string
	Path    Path
	Relayed int64 // bytes
	Carried int64
	Ends    []string // of all connections
	Err     string
}

const bulkProtocol = "/grange/test/bulk"

// runMember plays a member until its input ends.
func runMember(ctx context.Context, cfg Config, input io.Reader, output io.Writer) error {
	s, err := New(cfg)
	if err == nil {
		err = s.Listen()
	}
	if err != nil {
		return err
	}
	s.Host().SetStreamHandler(bulkProtocol, func(in network.Stream) {
		defer in.Close()
		_, _ = io.Copy(io.Discard, in)
	})
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	to := json.NewEncoder(output)
	err = to.Encode(report{Addrs: s.Addrs()})
	for from := json.NewDecoder(input); err == nil; {
		var o order
		if err = from.Decode(&o); err != nil {
			break
		}
		r := report{Addrs: s.Addrs()}
		if len(o.Reach) > 0 {
			if r.Path, err = send(ctx, s, o); err != nil {
				r.Err = err.Error()
			}
		}
		for _, c := range s.host.Network().Conns() {
			r.Ends = append(r.Ends, c.RemoteMultiaddr().String())
		}
		r.Relayed, r.Carried = s.Relayed()
		err = to.Encode(r)
	}
	cancel()
	return <-ended
}

func send(ctx context.Context, s *Swarm, o order) (Path, error) {
	var info peer.AddrInfo
	for _, a := range o.Reach {
		x, err := ParseAddr(a)
		if err != nil {
			return Path{}, err
		}
		info.ID, info.Addrs = x.ID, append(info.Addrs, x.Addrs...)
	}
	path, err := s.Reach(ctx, info)
	if err != nil || o.Bytes == 0 {
		return path, err
	}
	stream, err := s.Host().NewStream(ctx, info.ID, bulkProtocol)
	if err == nil {
		_, err = stream.Write(make([]byte, o.Bytes))
	}
	if err == nil {
		err = stream.CloseWrite()
	}
	if err == nil {
		_, err = io.ReadAll(stream) // it has taken all
	}
	return path, err
}

// away is a member in another network.
type away struct {
	t    *testing.T
	in   io.Writer
	out  *bufio.Reader
	last report
}

const (
	siteListen   = "GRANGE_SWARM_LISTEN"
	siteAnnounce = "GRANGE_SWARM_ANNOUNCE"
)

func startAway(t *testing.T, h *netns.Host, env ...string) *away {
	t.Helper()
	cmd := h.Command(context.WithoutCancel(t.Context()), os.Args[0])
	cmd.Env = append(append(os.Environ(), env...), siteRole+"=member")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	a := &away{t: t, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	a.read()
	return a
}

func (a *away) read() report {
	a.t.Helper()
	line, err := a.out.ReadBytes('\n')
	a.last = report{}
	if err == nil {
		err = json.Unmarshal(line, &a.last)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return a.last
}

func (a *away) do(o order) report {
	a.t.Helper()
	if err := json.NewEncoder(a.in).Encode(o); err != nil {
		a.t.Fatal(err)
	}
	return a.read()
}

// await asks until something holds.
func (a *away) await(what string, holds func(report) bool) {
	a.t.Helper()
	a.awaitWithin(what, 90*time.Second, holds)
}

func (a *away) awaitWithin(what string, wait time.Duration, holds func(report) bool) {
	a.t.Helper()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(wait); !holds(a.do(order{})); {
		select {
		case <-tick.C:
		case <-late:
			a.t.Fatalf("%s: not in time: %+v", what, a.last)
		}
	}
}

// newWorld is a network with a LAN of public addresses, and on it a member that relays.
func newWorld(t *testing.T) (n *netns.Network, relay *away, env []string) {
	t.Helper()
	n, err := netns.New(t.Context(), fmt.Sprintf("n%d", rand.IntN(100)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Public(t.Context(), "world"); err != nil {
		t.Fatal(err)
	}
	h, err := n.Host(t.Context(), "world")
	if err != nil {
		t.Fatal(err)
	}
	mesh := siteMesh + "=" + newMesh().String()
	announce := fmt.Sprintf("/ip4/%s/tcp/4001,/ip4/%s/udp/4001/quic-v1", h.Addr(), h.Addr())
	relay = startAway(t, h, mesh, siteListen+"="+announce, siteAnnounce+"="+announce)
	return n, relay, []string{mesh, siteSeed + "=" + strings.Join(relay.last.Addrs, ","), siteListen + "=/ip4/0.0.0.0/tcp/4001,/ip4/0.0.0.0/udp/4001/quic-v1"}
}

func circuits(r report) (out []string) {
	for _, a := range r.Addrs {
		if strings.Contains(a, "/p2p-circuit/") {
			out = append(out, a)
		}
	}
	return out
}

// TestMembersBehindNATs: AutoNAT finds out that two can't be dialled; they are reached
// through a relay, and once a hole is punched without it. Where UDP is blocked they stay
// with the relay, which counts what it carries, as they do.
func TestMembersBehindNATs(t *testing.T) {
	n, relay, env := newWorld(t)
	var homes []*netns.Host // routers
	var members []*away
	for _, name := range []string{"home", "office", "cellar"} {
		router, err := n.NAT(t.Context(), name, "world")
		if err != nil {
			t.Fatal(err)
		}
		if name == "cellar" {
			err = router.BlockUDP(t.Context())
		}
		h, err2 := n.Host(t.Context(), name)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		homes, members = append(homes, router), append(members, startAway(t, h, env...))
	}
	for _, m := range members {
		m.await("a place at the relay", func(r report) bool { return len(circuits(r)) > 0 })
	}
	home, office, cellar := members[0], members[1], members[2]
	const bytes = 1 << 20
	punched := home.do(order{Reach: circuits(office.last), Bytes: bytes})
	if punched.Err != "" || punched.Path.Way != Direct || !strings.Contains(punched.Path.Address, homes[1].Addr().String()) || punched.Relayed != 0 {
		t.Errorf("home reaches office: %+v", punched)
	}
	stays := cellar.do(order{Reach: circuits(office.last), Bytes: bytes})
	if stays.Err != "" || stays.Path.Way != Through || stays.Relayed < bytes {
		t.Errorf("where UDP is blocked: %+v", stays)
	}
	if r := relay.do(order{}); r.Carried < bytes || r.Carried > 2*bytes {
		t.Errorf("the relay has carried %d bytes", r.Carried)
	}
	if r := office.do(order{}); r.Relayed < bytes {
		t.Errorf("who was reached through it has had %d bytes", r.Relayed)
	}
}

// TestUDPBlocked: where it is, members are dialled by TCP, which goes first: QUIC is not
// waited for.
func TestUDPBlocked(t *testing.T) {
	n, relay, env := newWorld(t)
	h, err := n.Host(t.Context(), "blocked")
	if err == nil {
		err = h.BlockUDP(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	m := startAway(t, h, env...)
	if r := m.do(order{Reach: relay.last.Addrs, Bytes: 1 << 20}); r.Err != "" || !strings.Contains(r.Path.Address, "/tcp/4001") || r.Path.Way != Direct {
		t.Errorf("%+v", r)
	}
	beside, err := n.Host(t.Context(), "world")
	if err != nil {
		t.Fatal(err)
	}
	if r := startAway(t, beside, env...).do(order{Reach: relay.last.Addrs}); r.Err != "" || r.Path.Way != LAN {
		t.Errorf("in its subnet: %+v", r)
	}
}

// splitList reads a list of an environment's variable.
func splitList(name string) []string {
	return slices.DeleteFunc(strings.Split(os.Getenv(name), ","), func(s string) bool { return s == "" })
}

// TestAMovedMemberLeavesNothingBehind: it dials others from its new address, and they close
// what led to the old one.
func TestAMovedMemberLeavesNothingBehind(t *testing.T) {
	n, relay, env := newWorld(t)
	h, err := n.Host(t.Context(), "home")
	if err != nil {
		t.Fatal(err)
	}
	m := startAway(t, h, append(env, siteListen+"=/ip4/0.0.0.0/tcp/4001")...)
	at := func(r report, a netip.Addr) bool {
		return slices.ContainsFunc(r.Ends, func(end string) bool { return strings.Contains(end, "/"+a.String()+"/") })
	}
	relay.await("a connection", func(r report) bool { return at(r, h.Addr()) })
	old := h.Addr()
	if err := h.Move(t.Context()); err != nil {
		t.Fatal(err)
	}
	// left alone, it would find out after forty seconds that nobody is at the other end
	relay.awaitWithin("another", 25*time.Second, func(r report) bool { return at(r, h.Addr()) })
	relay.await("the old one is closed", func(r report) bool { return !at(r, old) })
	m.await("it tells of the new address", func(r report) bool {
		return !slices.ContainsFunc(r.Addrs, func(a string) bool { return strings.Contains(a, "/"+old.String()+"/") })
	})
}
