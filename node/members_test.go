package node

import (
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/trust"
)

// TestCandidatesAreOfDifferentFarmsFirst: many members of one farm are one voice.
func TestCandidatesAreOfDifferentFarmsFirst(t *testing.T) {
	var all []candidate
	for _, c := range []struct{ id, farm string }{{"b1", "beta"}, {"b2", "beta"}, {"b3", "beta"}, {"g1", "gamma"}, {"b4", "beta"}, {"d1", "delta"}, {"g2", "gamma"}} {
		all = append(all, candidate{peer.ID(c.id), trust.Identity{Role: trust.RoleNode, Farm: c.farm}})
	}
	var got []string
	for _, c := range byFarms(all) {
		got = append(got, string(c.id))
	}
	if want := []string{"b1", "g1", "d1", "b2", "g2", "b3", "b4"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
