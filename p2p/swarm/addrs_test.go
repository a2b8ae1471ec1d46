package swarm

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/lan"
)

func TestTCPIsDialledFirst(t *testing.T) {
	const relayed = "/ip4/192.0.2.9/udp/1/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit"
	got, far := map[string]time.Duration{}, func(ma.Multiaddr) bool { return false }
	for _, d := range rankBy([]ma.Multiaddr{ma.StringCast(relayed), ma.StringCast("/ip4/192.0.2.1/udp/1/quic-v1"), ma.StringCast("/ip4/192.0.2.1/tcp/1")}, far, far) {
		got[d.Addr.String()] = d.Delay
	}
	if got["/ip4/192.0.2.1/tcp/1"] != 0 || got["/ip4/192.0.2.1/udp/1/quic-v1"] != fallbackDelay || got[relayed] != 2*fallbackDelay {
		t.Errorf("delays %v", got)
	}
	for _, d := range rankBy([]ma.Multiaddr{ma.StringCast(relayed)}, far, far) {
		if d.Delay != 0 {
			t.Errorf("a relay alone waits %s", d.Delay)
		}
	}
}

// TestOwnSubnetIsDialledFirst, though others come before it in the list.
func TestOwnSubnetIsDialledFirst(t *testing.T) {
	addrs := []ma.Multiaddr{ma.StringCast("/ip4/172.17.0.1/tcp/1"), ma.StringCast("/ip4/203.0.113.9/tcp/1"), ma.StringCast("/ip4/10.77.1.9/tcp/1")}
	near := func(a ma.Multiaddr) bool { ip, _ := ipOf(a); return netip.MustParsePrefix("10.77.1.0/24").Contains(ip) }
	ranked := rankBy(addrs, near, near)
	if ranked[0].Addr.String() != "/ip4/10.77.1.9/tcp/1" || ranked[0].Delay != 0 {
		t.Errorf("first is %v", ranked[0])
	}
	for _, r := range ranked[1:] {
		if r.Delay < nearDelay {
			t.Errorf("%v does not wait for it", r)
		}
	}
}

// TestTheWorldIsDialledByQUICFromBehindANAT, but a neighbour is not; where UDP is blocked
// TCP comes soon.
func TestTheWorldIsDialledByQUICFromBehindANAT(t *testing.T) {
	addrs := []ma.Multiaddr{ma.StringCast("/ip4/203.0.113.9/tcp/1"), ma.StringCast("/ip4/203.0.113.9/udp/1/quic-v1"), ma.StringCast("/ip4/10.77.1.9/tcp/1"), ma.StringCast("/ip4/10.77.1.9/udp/1/quic-v1")}
	near := func(a ma.Multiaddr) bool { ip, _ := ipOf(a); return ip.IsPrivate() }
	got := map[string]time.Duration{}
	for _, r := range rankBy(addrs, near, func(a ma.Multiaddr) bool { return !near(a) }) {
		got[r.Addr.String()] = r.Delay
	}
	if got["/ip4/10.77.1.9/tcp/1"] != 0 || got["/ip4/203.0.113.9/udp/1/quic-v1"] != nearDelay || got["/ip4/203.0.113.9/tcp/1"] != nearDelay+punchDelay {
		t.Errorf("delays %v", got)
	}
}

// TestOnlyAddressesOfNetworksAreTold: neither loopback, nor a bridge to containers, nor
// what stands for all addresses.
func TestOnlyAddressesOfNetworksAreTold(t *testing.T) {
	own := []lan.Address{
		{Prefix: netip.MustParsePrefix("10.0.0.5/24"), Interface: "eth0"},
		{Prefix: netip.MustParsePrefix("172.17.0.1/16"), Interface: "docker0", Inner: true},
	}
	for _, x := range []struct{ listening, want string }{
		{"/ip4/127.0.0.1/tcp/1 /ip4/172.17.0.1/tcp/1 /ip4/10.0.0.5/tcp/1 /ip6/::/tcp/1", "/ip4/10.0.0.5/tcp/1"},
		{"/ip4/172.17.0.1/tcp/1 /ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"},
		{"/ip4/172.17.0.1/tcp/1", "/ip4/172.17.0.1/tcp/1"}, // whoever says --listen 172.17.0.1 means it
		{"/ip4/198.51.100.9/tcp/1 /ip4/127.0.0.1/tcp/1", "/ip4/198.51.100.9/tcp/1"},
	} {
		var addrs []ma.Multiaddr
		for text := range strings.FieldsSeq(x.listening) {
			addrs = append(addrs, ma.StringCast(text))
		}
		var got []string
		for _, a := range shown(addrs, own, []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("172.17.0.1")}) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != x.want {
			t.Errorf("%s: told %v, want %s", x.listening, got, x.want)
		}
	}
}

// TestAnnouncedAddresses are told beside the others, behind them.
func TestAnnouncedAddresses(t *testing.T) {
	s, err := New(Config{Identity: trust.NewPrivateKey(), Mesh: newMesh(), Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Announce: []string{"/ip4/1.2.3.4/tcp/9", "/dns4/farm.example.org/tcp/4001"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	addrs := s.Addrs()
	if len(addrs) != 3 || !strings.HasPrefix(addrs[0], "/ip4/127.0.0.1/") || !slices.Contains(addrs, "/dns4/farm.example.org/tcp/4001/p2p/"+s.ID().String()) {
		t.Errorf("told %v", addrs)
	}
	for _, wrong := range []string{"1.2.3.4:9", "/ip4/0.0.0.0/tcp/9", "/ip4/1.2.3.4", "/ip4/1.2.3.4/tcp/0", "/ip4/1.2.3.4/udp/9", "/unix/tmp/x", "/ip4/1.2.3.4/tcp/9/p2p/" + s.ID().String()} {
		if _, _, err := CheckAddrs(nil, []string{wrong}); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("--announce %s: %v", wrong, err)
		}
	}
}
