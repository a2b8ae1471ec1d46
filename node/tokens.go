package node

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// TokenRequest says what a member that joins will be.
type TokenRequest struct {
	Role     trust.Role `json:"role" enum:"node,seed,publisher,admin"`
	Farm     string     `json:"farm,omitempty" doc:"the farm that the member will belong to"`
	Lifetime float64    `json:"lifetime_seconds,omitempty" minimum:"0" maximum:"3.2e9" doc:"how long the token is good; a day when not given"`
}

// Token is a join token, or what is on record of one.
type Token struct {
	ID      string     `json:"id"`
	Token   string     `json:"token,omitempty" doc:"shown once, when it is made"`
	Limits  string     `json:"limits,omitempty" doc:"what those that join with it will not have; said when it is made"`
	Role    trust.Role `json:"role"`
	Farm    string     `json:"farm,omitempty"`
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	State   string     `json:"state" enum:"open,used,revoked,expired"`
	UsedBy  string     `json:"used_by,omitempty" doc:"the ID of the member that it brought in"`
}

// CreateToken makes a join token. Only an admin can; farm defaults to this
// node's own.
func (n *Node) CreateToken(req TokenRequest) (Token, error) {
	made, st, err := n.Membership.CreateToken(req.Role, req.Farm, time.Duration(req.Lifetime*float64(time.Second)))
	if err != nil {
		return Token{}, err
	}
	made.Origin, made.Bootstrap = withoutCredentials(n.origin.url), n.Self().Addrs
	t := n.tokenOf(st)
	t.Token, t.Limits = made.String(), n.tokenLimits()
	return t, nil
}

// Tokens returns what is on record of the tokens made here.
func (n *Node) Tokens() (out []Token, err error) {
	list, err := n.Membership.Tokens()
	for _, st := range list {
		out = append(out, n.tokenOf(st))
	}
	return out, err
}

func (n *Node) tokenOf(st trust.InviteState) Token {
	out := Token{ID: st.ID, Role: st.Role, Farm: st.Farm, Created: st.Created, Expires: st.Expires, State: "open"}
	switch {
	case st.UsedBy != nil:
		out.State, out.UsedBy = "used", identity.PeerID(*st.UsedBy).String()
	case st.Revoked:
		out.State = "revoked"
	case n.cfg.Now().After(st.Expires):
		out.State = "expired"
	}
	return out
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

// tokenLimits says what members that join with a token of this node will not have:
// "" when nothing.
func (n *Node) tokenLimits() string {
	var out []string
	if strings.HasPrefix(n.origin.url, "file:") {
		out = append(out, "the origin "+n.origin.url+" is a folder of this host and serves one host: members elsewhere read and write through this node, while it runs; a mesh of several hosts is founded with --origin s3://…")
	}
	if !slices.ContainsFunc(n.swarm.Addrs(), func(a string) bool { return !strings.Contains(a, "/127.0.0.1/") && !strings.Contains(a, "/::1/") }) {
		out = append(out, "this node is reached from its own host alone; --listen or --announce gives it an address that others reach")
	}
	return strings.Join(out, "; ")
}
