package swarm

import (
	"errors"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/golden"
)

func peersSample(t testing.TB) []peer.AddrInfo {
	t.Helper()
	var out []peer.AddrInfo
	for _, text := range []string{
		"/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
		"/ip6/2001:db8::1/udp/4001/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
		"/ip4/10.0.0.5/tcp/4001/p2p/12D3KooWKRyzVWW6ChFjQjK4miCty85Niy48tpPV95XdKu1BcvMA",
	} {
		info, err := ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		out = AddPeer(out, info)
	}
	return out
}

func TestPeersFileGolden(t *testing.T) {
	b := encodePeers(peersSample(t))
	golden.Check(t, "peers", b)
	back, err := decodePeers(b)
	if err != nil || !slices.EqualFunc(back, peersSample(t), func(a, b peer.AddrInfo) bool { return a.String() == b.String() }) {
		t.Errorf("decoded %v, %v", back, err)
	}
}

func TestPeersFileIsBounded(t *testing.T) {
	many := make([]peer.AddrInfo, 0, keptMax+8)
	addrs := slices.Repeat([]ma.Multiaddr{ma.StringCast("/ip4/10.0.0.5/tcp/4001")}, keptAddrsMax+2)
	for range cap(many) {
		many = append(many, peer.AddrInfo{ID: idOf(t, newMesh()), Addrs: addrs})
	}
	back, err := decodePeers(encodePeers(many))
	if err != nil || len(back) != keptMax || len(back[0].Addrs) != keptAddrsMax {
		t.Errorf("%d peers, %v", len(back), err)
	}
}

func FuzzPeersFile(f *testing.F) {
	f.Add(encodePeers(peersSample(f)))
	f.Add([]byte(peersMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		peers, err := decodePeers(b)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
			return
		}
		if again, err := decodePeers(encodePeers(peers)); err != nil || len(again) > len(peers) {
			t.Errorf("%v does not come back: %v", peers, err)
		}
	})
}

// TestReachTriesAgain whoever was not there a moment ago.
func TestReachTriesAgain(t *testing.T) {
	key := trust.NewPrivateKey()
	there, stop := start(t, Config{Identity: key})
	info, err := ParseAddr(there.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	stop()
	asks, _ := start(t, Config{})
	if path, err := asks.Reach(t.Context(), info); !errors.Is(err, content.ErrUnavailable) {
		t.Fatalf("a member that is gone: %+v, %v", path, err)
	}
	start(t, Config{Identity: key, Listen: []string{info.Addrs[0].String()}})
	if path, err := asks.Reach(t.Context(), info); err != nil || path.Way != LAN {
		t.Errorf("a member that is back: %+v, %v", path, err)
	}
}
