package node

import (
	"net/url"
	"time"

	"github.com/grangemesh/grange/origin/trust"
)

// CreateToken makes a join token. Only an admin can; farm defaults to this
// node's own.
func (n *Node) CreateToken(role trust.Role, farm string, lifetime time.Duration) (trust.Token, trust.InviteState, error) {
	token, st, err := n.Membership.CreateToken(role, farm, lifetime)
	if err != nil {
		return trust.Token{}, trust.InviteState{}, err
	}
	token.Origin, token.Bootstrap = withoutCredentials(n.origin.url), n.Self().Addrs
	return token, st, nil
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
