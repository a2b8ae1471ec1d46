package node

import (
	"fmt"
	"net/url"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
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

// Tokens returns what is on record of the tokens made here.
func (n *Node) Tokens() ([]trust.InviteState, error) { return n.invites.List() }

// RevokeToken makes an unused token useless.
func (n *Node) RevokeToken(id string) error { return n.invites.Revoke(id) }
