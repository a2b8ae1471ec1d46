package membership

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
)

// silentShown is how many of those that let nobody in an error names.
const silentShown = 3

// door is what a newcomer reaches members through.
type door struct {
	swarm    *swarm.Swarm
	exchange *exchange.Exchange
}

// redeemAt has an admin among the members at those addresses redeem an invite, and
// returns the address at which it was reached. All are tried side by side, however many
// are dead: a token's text bounds them. The invite is shown to admins of the mesh alone,
// to one after the other as they are reached.
func redeemAt(ctx context.Context, d door, q redeemRequest, addrs []string) (reply papers, at string, err error) {
	codec := content.NewCodec()
	body, err := codec.Marshal(q)
	if err != nil {
		return reply, "", err
	}
	var peers []peer.AddrInfo
	var errs []error
	for _, a := range addrs {
		info, err := swarm.ParseAddr(a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		peers = swarm.AddPeer(peers, info)
	}
	ctx, cancel := context.WithCancel(ctx)
	var dialling sync.WaitGroup
	defer dialling.Wait()
	defer cancel()
	type attempt struct {
		id  peer.ID
		err error
	}
	reached := make(chan attempt, len(peers))
	for _, p := range peers {
		dialling.Go(func() { reached <- attempt{p.ID, d.admin(ctx, p)} })
	}
	for range peers {
		a := <-reached
		if a.err != nil {
			errs = append(errs, a.err)
			continue
		}
		b, err := d.exchange.Call(ctx, a.id, redeemMethod, body)
		if errors.Is(err, content.ErrForbidden) { // it was refused, and asking elsewhere would not help
			return reply, "", err
		}
		if err == nil {
			err = codec.Unmarshal(b, &reply)
		}
		if err == nil {
			return reply, d.reachedAt(a.id, addrs), nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", a.id, err))
	}
	more := ""
	if len(errs) > silentShown {
		more = fmt.Sprintf(" (and %d more)", len(errs)-silentShown)
	}
	return papers{}, "", fmt.Errorf("%w: no admin answers at the %d addresses of the token and of --bootstrap: %w%s", content.ErrUnavailable, len(addrs), errors.Join(errs[:min(len(errs), silentShown)]...), more)
}

// admin connects with a member, which has to prove that it is an admin.
func (d door) admin(ctx context.Context, p peer.AddrInfo) error {
	if err := d.swarm.Connect(ctx, p); err != nil {
		return err
	}
	who, err := d.exchange.Meet(ctx, p.ID)
	if err == nil && who.Role != trust.RoleAdmin {
		err = fmt.Errorf("%w: it is a %s of the mesh, no admin", content.ErrUnavailable, who.Role)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.ID, err)
	}
	return nil
}

// reachedAt is the address at which a member was reached.
func (d door) reachedAt(id peer.ID, addrs []string) string {
	if at := d.swarm.Reached(id); at != nil {
		return at.String() + "/p2p/" + id.String()
	}
	return addrs[slices.IndexFunc(addrs, func(a string) bool { p, err := swarm.ParseAddr(a); return err == nil && p.ID == id })]
}

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
		if err := content.CheckFarm(farm); err != nil {
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
		return fmt.Errorf("token %s: %w: %s has joined with it, and stays a member; `grange mesh revoke %s` ends that", id, content.Used, identity.PeerID(*st.UsedBy).String(), id)
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
