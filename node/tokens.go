package node

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/swarm"
)

// CreateToken makes a join token. Only an admin can; farm defaults to this
// node's own.
func (n *Node) CreateToken(role trust.Role, farm string, lifetime time.Duration) (trust.Token, trust.InviteState, error) {
	role, err := trust.ParseRole(string(role))
	if err != nil {
		return trust.Token{}, trust.InviteState{}, err
	}
	if id := n.signer.Chain.Identity(); id.Role != trust.RoleAdmin {
		return trust.Token{}, trust.InviteState{}, fmt.Errorf("create token: %w: this node is a %s; ask an admin, such as the node that founded the mesh", content.ErrForbidden, id.Role)
	}
	switch {
	case role == trust.RoleSeed:
		farm = ""
	case farm == "":
		farm = n.Farm()
	}
	if role != trust.RoleSeed {
		if err := content.CheckName(farm); err != nil {
			return trust.Token{}, trust.InviteState{}, fmt.Errorf("farm: %w", err)
		}
	}
	if lifetime <= 0 {
		lifetime = trust.InviteLifetime
	}
	invite, st, err := n.invites.Create(role, farm, n.cfg.Now(), lifetime)
	if err != nil {
		return trust.Token{}, trust.InviteState{}, err
	}
	return trust.Token{
		Mesh: n.member.Mesh, Origin: withoutCredentials(n.origin.url), Bootstrap: n.Self().Addrs, Invite: invite,
		Role: role, Farm: farm, Secrets: n.member.Secrets.For(role, farm), Expires: st.Expires.Unix(),
	}, st, nil
}

// withoutCredentials strips what a URL must not carry to others.
func withoutCredentials(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

// TokenInfo is what is on record of a token.
type TokenInfo struct {
	trust.InviteState
	// UsedBy is the member that it brought in, by the identifier that Peers shows; ""
	// for none.
	UsedBy string
}

// Tokens returns what is on record of the tokens made here.
func (n *Node) Tokens() ([]TokenInfo, error) {
	list, err := n.invites.List()
	out := make([]TokenInfo, 0, len(list))
	for _, st := range list {
		t := TokenInfo{InviteState: st}
		if st.UsedBy != nil {
			t.UsedBy = memberID(*st.UsedBy)
		}
		out = append(out, t)
	}
	return out, err
}

// memberID is the identifier of the member with that key, as its peers know it.
func memberID(key trust.PublicKey) string {
	id, err := swarm.PeerID(key)
	if err != nil {
		return key.String()
	}
	return id.String()
}

// RevokeToken makes an unused token useless; one that was used is ErrConflict.
func (n *Node) RevokeToken(id string) error {
	st, err := n.invites.Revoke(id)
	switch {
	case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrInvalid):
		return fmt.Errorf("token %.40q: %w; `grange token ls` shows those that this node made", id, content.ErrNotFound)
	case st.UsedBy != nil:
		return fmt.Errorf("token %s: %w: %s has joined with it, and stays a member", id, content.ErrConflict, memberID(*st.UsedBy))
	}
	return err
}
