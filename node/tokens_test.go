package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/swarm"
)

// TestTokensNameMembersAsPeersDo: who used a token can be found among the peers.
func TestTokensNameMembersAsPeersDo(t *testing.T) {
	invites, err := trust.OpenInvites(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{invites: invites}
	invite, st, err := invites.Create(trust.RoleNode, "oslo", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	member := trust.NewPrivateKey()
	if _, err := invites.Redeem(invite, member.Public(), time.Now()); err != nil {
		t.Fatal(err)
	}
	s, err := swarm.New(swarm.Config{Identity: member})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if list, err := n.Tokens(); err != nil || len(list) != 1 || list[0].UsedBy != s.ID().String() {
		t.Errorf("%+v, %v, want it used by %s", list, err, s.ID())
	}
	if err := n.RevokeToken(st.ID); !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), s.ID().String()) {
		t.Errorf("a used one: %v", err)
	}
	_, open, err := invites.Create(trust.RoleNode, "oslo", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.RevokeToken(open.ID); err != nil {
		t.Error(err)
	}
	if list, err := n.Tokens(); err != nil || len(list) != 2 || !list[1].Revoked {
		t.Errorf("%+v, %v, want the second revoked", list, err)
	}
	for _, id := range []string{"nope", "0123456789abcdef"} {
		if err := n.RevokeToken(id); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("%s: %v", id, err)
		}
	}
}
