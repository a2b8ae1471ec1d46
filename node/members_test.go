package node

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/swarm"
)

func TestShare(t *testing.T) {
	for _, x := range []struct{ near, far, wantNear, wantFar int }{
		{0, 0, 0, 0}, {2, 2, 2, 2}, {9, 0, 6, 0}, {0, 9, 0, 6}, {9, 9, 3, 3}, {9, 1, 5, 1}, {1, 9, 1, 5}, {4, 3, 3, 3},
	} {
		near, far := slices.Repeat([]string{"near"}, x.near), slices.Repeat([]string{"far"}, x.far)
		want := slices.Concat(near[:x.wantNear], far[:x.wantFar])
		if got := share(near, far, 6); !slices.Equal(got, want) {
			t.Errorf("%d near and %d far: %v", x.near, x.far, got)
		}
	}
}

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

// TestFarmThatIsNotHeard: a node that serves its volumes without its farm says so, and why.
func TestFarmThatIsNotHeard(t *testing.T) {
	key := trust.NewPrivateKey()
	mesh := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "lyon"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{cfg: Config{FarmBind: "nowhere", Log: slog.New(slog.DiscardHandler)}, awaited: true}
	if n.Membership, err = membership.Open(membership.Config{Dir: t.TempDir(), Identity: key, Now: time.Now, Log: n.cfg.Log}, membership.State{Mesh: mesh.Public(), Chain: chain}); err != nil {
		t.Fatal(err)
	}
	if err := n.openFarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if hood := n.Neighbourhood(); hood.State != FarmCutOff || !strings.Contains(hood.Detail, "nowhere") {
		t.Errorf("%+v", hood)
	}
}

// TestAMemberThatNobodyHereHasMet is found by its ID all the same, as who it proves to be: in this
// farm, or not. A node that has just come knows of nobody, and nobody has told of it.
func TestAMemberThatNobodyHereHasMet(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	m.first, _ = m.start(t.TempDir(), "first", "")
	mate, _ := m.start(t.TempDir(), "mate", m.token(trust.RoleNode))
	token, err := m.first.CreateToken(TokenRequest{Role: trust.RoleNode, Farm: "beta"})
	if err != nil {
		t.Fatal(err)
	}
	m.farm = "beta"
	far, _ := m.start(t.TempDir(), "far", token.Token)
	m.farm = ""
	n := m.build(trust.RoleNode, t.TempDir(), "new", m.token(trust.RoleNode)) // it does not run: it greets nobody, and asks nobody
	for _, x := range []struct {
		who  *Node
		want error
	}{{mate, nil}, {far, content.ErrForbidden}} {
		key, id := x.who.identity.Public(), x.who.swarm.ID()
		if was := n.Membership.Who(key); was.Role != "" {
			t.Fatalf("it has met %s: this shows nothing", was)
		}
		at, err := swarm.ParseAddr(x.who.swarm.Addrs()[0])
		if err == nil {
			err = n.swarm.Connect(t.Context(), at)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, said, err := n.findMember(t.Context(), id.String())
		if got != key || !errors.Is(err, x.want) || !strings.Contains(said, id.String()) {
			t.Errorf("%s, %v", said, err)
		}
		if h := n.holder(id); h.Farm != x.who.Farm() {
			t.Errorf("as a holder of images it is of farm %q, and not of %s", h.Farm, x.who.Farm())
		}
	}
	gone := trust.NewPrivateKey().Public()
	if _, said, err := n.findMember(t.Context(), gone.String()); err == nil || !strings.Contains(err.Error(), "nobody here has met it") {
		t.Errorf("one that is nowhere: %s, %v", said, err)
	}
	m.run(n)
}
