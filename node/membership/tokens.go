package membership

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// CreateToken makes a join token, for an admin. Origin and addresses are the caller's.
func (m *Membership) CreateToken(role trust.Role, farm string, lifetime time.Duration) (t trust.Token, st trust.InviteState, err error) {
	if role, err = trust.ParseRole(string(role)); err == nil {
		err = m.admin("create token")
	}
	if err != nil {
		return t, st, err
	}
	switch {
	case role == trust.RoleSeed:
		farm = ""
	case farm == "":
		farm = m.Identity().Farm
	}
	if role != trust.RoleSeed {
		if err := content.CheckName(farm); err != nil {
			return t, st, fmt.Errorf("farm: %w", err)
		}
	}
	if lifetime <= 0 {
		lifetime = trust.InviteLifetime
	}
	invite, st, err := m.invites.Create(role, farm, m.cfg.Now(), lifetime)
	if err != nil {
		return t, st, err
	}
	return trust.Token{Mesh: m.State().Mesh, Invite: invite, Role: role, Farm: farm, Expires: st.Expires.Unix()}, st, nil
}

// Tokens returns what is on record of the tokens made here.
func (m *Membership) Tokens() ([]trust.InviteState, error) { return m.invites.List() }

// RevokeToken makes an unused token useless; one that was used is ErrConflict.
func (m *Membership) RevokeToken(id string) error {
	st, err := m.invites.Revoke(id)
	switch {
	case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrInvalid):
		return fmt.Errorf("token %.40q: %w; `grange token ls` shows those that this node made", id, content.ErrNotFound)
	case st.UsedBy != nil:
		return fmt.Errorf("token %s: %w: %s has joined with it, and stays a member; `grange mesh revoke %s` ends that", id, content.Used, MemberID(*st.UsedBy), id)
	}
	return err
}

// MeshKey returns the mesh key, ErrNotFound where it is not.
func (m *Membership) MeshKey() (trust.PrivateKey, error) {
	key, err := trust.LoadKey(filepath.Join(m.cfg.Dir, meshKeyFile))
	if errors.Is(err, content.ErrNotFound) {
		return key, fmt.Errorf("mesh key: %w: it is on the node that founded the mesh, and where it was imported", content.ErrNotFound)
	}
	if err == nil && key.Public() != m.State().Mesh {
		err = fmt.Errorf("mesh key: %w: %s holds the key of mesh %s", content.ErrCorrupt, filepath.Join(m.cfg.Dir, meshKeyFile), key.Public())
	}
	return key, err
}

// ImportMeshKey brings the mesh key here, which makes this member an admin whom no
// revocation of another touches. Where it is no admin yet, it begins new secrets too:
// it has no others to give to those that join.
func (m *Membership) ImportMeshKey(ctx context.Context, key trust.PrivateKey) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("import mesh key: %w", err)
		}
	}()
	s := m.State()
	if key.Public() != s.Mesh {
		return fmt.Errorf("%w: it is the key of mesh %s, and this node is of mesh %s", content.OtherMesh, key.Public(), s.Mesh)
	}
	if since, ok := m.verifier.Revoked(m.cfg.Identity.Public()); ok {
		return fmt.Errorf("%w: this node was revoked on %s; bring the key to another member", content.ErrForbidden, since.UTC().Format(time.RFC3339))
	}
	id := s.Chain.Identity()
	if id.Role == trust.RoleSeed {
		return fmt.Errorf("%w: this is a seed, which belongs to no farm; bring the key to a node", content.ErrForbidden)
	}
	path := filepath.Join(m.cfg.Dir, meshKeyFile)
	switch there, err := trust.LoadKey(path); {
	case err == nil && there != key:
		return fmt.Errorf("%w: %s has another key, of mesh %s", content.ErrExists, path, there.Public())
	case errors.Is(err, content.ErrNotFound):
		if err := trust.SaveKey(path, key); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if id.Role != trust.RoleAdmin || m.verifier.Orphaned(s.Chain) {
		chain, err := trust.Signer{Key: key}.Issue(trust.Grant{Subject: id.Key, Role: trust.RoleAdmin, Farm: id.Farm}, m.cfg.Now())
		if err == nil {
			err = m.recertify(chain)
		}
		if err != nil {
			return err
		}
	}
	if m.State().Secrets.Root == [32]byte{} {
		_, err = m.Rotate(ctx)
	}
	return err
}
