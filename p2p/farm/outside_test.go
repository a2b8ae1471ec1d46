package farm

import (
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/trust"
)

const relayAddr = "/ip4/198.51.100.1/tcp/4001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit"

// TestOutside: at most two, the best reached, whoever looks; and who holds a path keeps it
// when others come that hold none.
func TestOutside(t *testing.T) {
	reaches := [][]ma.Multiaddr{
		{ma.StringCast("/ip4/10.0.0.5/tcp/4001"), ma.StringCast("/ip4/8.8.8.8/tcp/4001")},
		{ma.StringCast("/ip4/10.0.0.5/tcp/4001"), ma.StringCast(relayAddr)},
		{ma.StringCast("/ip4/10.0.0.5/tcp/4001")},
		nil,
	}
	rapid.Check(t, func(t *rapid.T) {
		var members []Member
		reach := map[peer.ID]int{}
		for i := range rapid.IntRange(1, 70).Draw(t, "members") {
			r := rapid.IntRange(0, len(reaches)-1).Draw(t, "reach")
			m := Member{ID: peer.ID(rune(i + 1)), Identity: trust.Identity{Farm: "a"}, Addrs: reaches[r]}
			members, reach[m.ID] = append(members, m), min(r, 2)
		}
		got := Outside(members)
		if len(got) != min(2, len(members)) {
			t.Fatalf("%d members hold the paths of %d", len(got), len(members))
		}
		best := slices.Sorted(func(yield func(int) bool) {
			for _, r := range reach {
				if !yield(r) {
					return
				}
			}
		})
		for i, id := range got {
			if reach[id] != best[i] {
				t.Errorf("number %d is reached as %d, where one is as %d", i, reach[id], best[i])
			}
		}
		slices.Reverse(members)
		if other := Outside(members); !slices.Equal(got, other) {
			t.Errorf("another who looks has %v, not %v", other, got)
		}
		if reach[got[len(got)-1]] < 2 {
			later := append(members, Member{ID: "newcomer", Identity: trust.Identity{Farm: "a"}, Addrs: reaches[2]})
			if now := Outside(later); !slices.Equal(got, now[:len(got)]) {
				t.Errorf("a newcomer has made it %v, from %v", now, got)
			}
		}
	})
}

// TestWhatWasHeardAtAnOldAddressCountsNoMore: of a member that has moved the gossip of
// before may still say for a while who is gone.
func TestWhatWasHeardAtAnOldAddressCountsNoMore(t *testing.T) {
	first, _ := start(t, configOf("n0"))
	second, _ := start(t, configOf("n1", first.Address()))
	await(t, first, 2)
	face{first, -1}.NotifyLeave(second.list.Load().LocalNode())
	if len(first.Live()) != 2 {
		t.Error("a member is gone that is here")
	}
	face{first, 0}.NotifyLeave(second.list.Load().LocalNode())
	if len(first.Live()) != 1 {
		t.Error("a member is here that is gone")
	}
}
