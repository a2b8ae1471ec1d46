package node

import (
	"net/url"
	"time"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/trust"
)

// CreateToken makes a join token. Only an admin can; farm defaults to this
// node's own.
func (n *Node) CreateToken(role trust.Role, farm string, lifetime time.Duration) (trust.Token, trust.InviteState, error) {
	token, st, err := n.member.CreateToken(role, farm, lifetime)
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

// TokenInfo is what is on record of a token.
type TokenInfo struct {
	trust.InviteState
	// UsedBy is the member that it brought in, by the identifier that Peers shows; ""
	// for none.
	UsedBy string
}

// Tokens returns what is on record of the tokens made here.
func (n *Node) Tokens() ([]TokenInfo, error) {
	list, err := n.member.Tokens()
	out := make([]TokenInfo, 0, len(list))
	for _, st := range list {
		t := TokenInfo{InviteState: st}
		if st.UsedBy != nil {
			t.UsedBy = membership.MemberID(*st.UsedBy)
		}
		out = append(out, t)
	}
	return out, err
}

// RevokeToken makes an unused token useless; one that was used is ErrConflict.
func (n *Node) RevokeToken(id string) error { return n.member.RevokeToken(id) }
