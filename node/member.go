package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
)

// The files of a member in its data folder. Losing identity or membership means
// joining again; losing the mesh key means that no member can ever be added.
const (
	identityFile   = "identity.key"
	meshKeyFile    = "mesh.key"
	membershipFile = "membership"
	invitesDir     = "invites"
	peersFile      = "peers"
)

// membership is what a member knows of its mesh; written once, at the founding
// or the joining.
type membership struct {
	Magic     string          `cbor:"magic"`
	Mesh      trust.PublicKey `cbor:"mesh"`
	Chain     trust.Chain     `cbor:"chain"`
	Secrets   trust.Secrets   `cbor:"secrets"`
	Origin    string          `cbor:"origin"`
	Bootstrap []string        `cbor:"bootstrap"`
}

const membershipMagic = "grange-membership/1"

func (m membership) save(dir string) error {
	m.Magic = membershipMagic
	b, err := content.NewCodec().Marshal(m)
	if err != nil {
		return fmt.Errorf("membership: %w", err)
	}
	return durable.WriteFile(filepath.Join(dir, membershipFile), b, 0o600)
}

// loadMembership returns ErrNotFound in a folder that belongs to no mesh yet.
func loadMembership(dir string) (membership, error) {
	path := filepath.Join(dir, membershipFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return membership{}, fmt.Errorf("membership: %w", content.ErrNotFound)
	}
	if err != nil {
		return membership{}, fmt.Errorf("membership: %w", err)
	}
	var m membership
	if err := content.NewCodec().Unmarshal(b, &m); err != nil || m.Magic != membershipMagic {
		return membership{}, fmt.Errorf("membership %s: %w; restore it from a backup, or join again with an empty --data", path, errors.Join(content.ErrCorrupt, err))
	}
	return m, nil
}

// loadIdentity returns this member's key, made at the first start.
func loadIdentity(dir string) (trust.PrivateKey, error) {
	path := filepath.Join(dir, identityFile)
	key, err := trust.LoadKey(path)
	if errors.Is(err, content.ErrNotFound) {
		key = trust.NewPrivateKey()
		err = trust.SaveKey(path, key)
	}
	return key, err
}

// enter returns this node's membership: the one on record, one from redeeming
// the token, or that of a new mesh, of which this node is the first admin.
func (c Config) enter(ctx context.Context, identity trust.PrivateKey) (membership, error) {
	m, err := loadMembership(c.Dir)
	switch {
	case err == nil && c.Join != "":
		return m, c.joinedAlready(m)
	case err == nil || !errors.Is(err, content.ErrNotFound):
		return m, err
	case c.Join != "":
		m, err = c.join(ctx, identity)
	default:
		m, err = c.found(identity)
	}
	if err != nil {
		return membership{}, err
	}
	return m, m.save(c.Dir)
}

// joinedAlready lets the token stay on the command line of a node that it has
// brought in, and refuses one of another mesh.
func (c Config) joinedAlready(m membership) error {
	token, err := trust.ParseToken(c.Join, time.Time{})
	if err != nil {
		return err
	}
	if token.Mesh != m.Mesh {
		return fmt.Errorf("--join: %w: %s belongs to mesh %s, the token to mesh %s; give an empty --data to join that one", content.ErrConflict, c.Dir, m.Mesh, token.Mesh)
	}
	return nil
}

// found makes a mesh. The mesh key is on disk before the membership that makes
// it this node's, so a crash between leaves a key that nothing uses.
func (c Config) found(identity trust.PrivateKey) (membership, error) {
	mesh, chain, secrets, err := trust.FoundMesh(identity.Public(), c.Farm, c.Now())
	if err != nil {
		return membership{}, err
	}
	if err := trust.SaveKey(filepath.Join(c.Dir, meshKeyFile), mesh); err != nil {
		return membership{}, fmt.Errorf("found mesh: %w", err)
	}
	c.Log.Info("founded a mesh", "mesh", mesh.Public(), "farm", c.Farm)
	return membership{Mesh: mesh.Public(), Chain: chain, Secrets: secrets, Origin: c.originURL()}, nil
}

// originURL is the first --origin, or the folder in --data that stands in for
// one on a single host.
func (c Config) originURL() string {
	if len(c.Origins) > 0 {
		return c.Origins[0]
	}
	return "file://" + filepath.ToSlash(filepath.Join(c.Dir, "origin"))
}

// redeemRequest and redeemReply are the bodies of the call by which a newcomer
// shows its invite.
type redeemRequest struct {
	Invite  trust.Invite    `cbor:"invite"`
	Subject trust.PublicKey `cbor:"subject"`
}

type redeemReply struct {
	Chain trust.Chain `cbor:"chain"`
}

const (
	redeemMethod = "redeem"
	// joinTimeout bounds a whole join: each bootstrap address is tried in turn.
	joinTimeout = 60 * time.Second
)

// redeem answers a newcomer that shows an invite of this node.
func (n *Node) redeem(body []byte) ([]byte, error) {
	var req redeemRequest
	if err := n.codec.Unmarshal(body, &req); err != nil {
		return nil, err
	}
	st, err := n.invites.Redeem(req.Invite, req.Subject, n.cfg.Now())
	if err != nil {
		return nil, err
	}
	chain, err := n.signer.Issue(trust.Grant{Subject: req.Subject, Role: st.Role, Farm: st.Farm}, n.cfg.Now())
	if err != nil {
		return nil, err
	}
	n.cfg.Log.Info("a member joined", "key", req.Subject, "role", st.Role, "farm", st.Farm)
	return n.codec.Marshal(redeemReply{chain})
}

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
