package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

	fresh bool // just founded or joined
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
	if err == nil {
		c.checkFarm(m)
	}
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
	m.fresh = true
	c.checkFarm(m)
	return m, m.save(c.Dir)
}

// checkFarm says so when the farm that was asked for is not the member's: it stands in
// its certificate.
func (c Config) checkFarm(m membership) {
	if farm := m.Chain.Identity().Farm; c.Farm != "" && c.Farm != farm {
		c.Log.Warn("--farm is ignored: it is for a node that founds a mesh, and this member is of another farm; join with a token of that farm and an empty --data to change it",
			"asked", c.Farm, "farm", farm)
	}
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
	farm := cmp.Or(c.Farm, FarmDefault)
	mesh, chain, secrets, err := trust.FoundMesh(identity.Public(), farm, c.Now())
	if err != nil {
		return membership{}, err
	}
	if err := trust.SaveKey(filepath.Join(c.Dir, meshKeyFile), mesh); err != nil {
		return membership{}, fmt.Errorf("found mesh: %w", err)
	}
	c.Log.Info("founded a mesh", "mesh", mesh.Public(), "farm", farm)
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
