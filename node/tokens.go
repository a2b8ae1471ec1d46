package node

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/trust"
)

// CreateToken makes a join token. Only an admin can; farm defaults to this
// node's own.
func (n *Node) CreateToken(role trust.Role, farm string, lifetime time.Duration) (trust.Token, trust.InviteState, error) {
	token, st, err := n.Membership.CreateToken(role, farm, lifetime)
	token.Origin, token.Bootstrap = withoutCredentials(n.origin.url), n.Self().Addrs
	return token, st, err
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

// TokenLimits says what members that join with a token of this node will not have:
// "" when nothing.
func (n *Node) TokenLimits() string {
	var out []string
	if strings.HasPrefix(n.origin.url, "file:") {
		out = append(out, "the origin "+n.origin.url+" is a folder of this host and serves one host: members elsewhere read and write through this node, while it runs; a mesh of several hosts is founded with --origin s3://…")
	}
	if !slices.ContainsFunc(n.swarm.Addrs(), func(a string) bool { return !strings.Contains(a, "/127.0.0.1/") && !strings.Contains(a, "/::1/") }) {
		out = append(out, "this node is reached from its own host alone; --listen or --announce gives it an address that others reach")
	}
	return strings.Join(out, "; ")
}
