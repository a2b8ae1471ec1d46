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

const (
	// callTimeout bounds one call to a member.
	callTimeout = 3 * time.Second
	// seekInterval is how often a member asks again for what it did not get: secrets
	// of the newest generation, or a certificate from a living admin.
	seekInterval = 5 * time.Second
)

// secretsFor returns the newest secrets for a member: of an admin, any farm's.
func (m *Membership) secretsFor(id trust.Identity) (p papers, err error) {
	s := m.State()
	own := s.Chain.Identity()
	switch {
	case !id.Role.IsMember():
		return p, fmt.Errorf("secrets: %w: a %s has none", content.ErrForbidden, id.Role)
	case own.Role == trust.RoleAdmin && s.Secrets.Root != [32]byte{}:
		p.Secrets = s.Secrets.For(id.Role, id.Farm)
		p.Rotation, err = m.Signer().Rotate(s.Secrets, id.Farm, m.cfg.Now())
		return p, err
	case own.Role.IsMember() && own.Farm == id.Farm && id.Role != trust.RoleAdmin:
		p.Secrets, p.Rotation = s.Secrets, s.Rotation
		p.Secrets.Root = [32]byte{}
		return p, nil
	}
	return p, fmt.Errorf("secrets of a %s of farm %s: %w: ask an admin", id.Role, id.Farm, content.ErrUnavailable)
}

// Rotate begins a new generation of the mesh's secrets, on disk here when it returns,
// and tells whom this member is connected with; others hear when they are back.
func (m *Membership) Rotate(ctx context.Context) (trust.Generation, error) {
	if err := m.admin("rotate"); err != nil {
		return trust.Generation{}, err
	}
	m.mu.RLock()
	newest := m.newest
	m.mu.RUnlock()
	signer := m.Signer()
	secrets := trust.NewSecrets(newest.Number+1).For(trust.RoleAdmin, m.Identity().Farm)
	rotation, err := signer.Rotate(secrets, m.Identity().Farm, m.cfg.Now())
	if err != nil {
		return trust.Generation{}, err
	}
	if err := m.adopt(secrets, rotation); err != nil {
		return trust.Generation{}, err
	}
	m.tellAll(ctx, nil)
	return secrets.Generation, nil
}

func (m *Membership) adopt(secrets trust.Secrets, rotation []byte) error {
	err := m.change(func(s *State) error {
		if !secrets.Generation.After(s.Secrets.Generation) {
			return fmt.Errorf("secrets of generation %d: %w: newer ones came meanwhile", secrets.Generation.Number, content.ErrConflict)
		}
		s.Former, s.Secrets, s.Rotation, s.Rotated = s.Secrets, secrets, rotation, m.cfg.Now().UnixMilli()
		return nil
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	if !m.newest.After(secrets.Generation) {
		m.newest, m.notice = secrets.Generation, rotation
	}
	m.mu.Unlock()
	m.cfg.Log.Info("the mesh has new secrets", "generation", secrets.Generation.Number)
	m.cfg.OnRotated(secrets)
	return nil
}

// hearRotation takes a rotation as told: news is passed on, and the secrets asked for.
func (m *Membership) hearRotation(notice []byte) {
	if len(notice) == 0 {
		return
	}
	m.mu.RLock()
	known := string(notice) == string(m.notice)
	m.mu.RUnlock()
	if known {
		return
	}
	r, err := m.verifier.OpenRotation(notice, m.cfg.Now())
	if err != nil {
		m.cfg.Log.Debug("a rotation is not believed", "err", err)
		return
	}
	m.mu.Lock()
	fresh := r.Generation.Follows(m.newest)
	if fresh {
		m.newest, m.notice = r.Generation, notice
	}
	m.mu.Unlock()
	if fresh {
		nudge(m.wake)
		nudge(m.seek)
	}
}

// behind reports whether there are newer secrets than this member's.
func (m *Membership) behind() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Chain.Identity().Role.IsMember() && m.newest.After(m.state.Secrets.Generation)
}

// keepSought asks for secrets and certificates that are newer or sound, until ctx ends.
func (m *Membership) keepSought(ctx context.Context) {
	every(ctx, seekInterval, m.seek, func() {
		if m.behind() {
			m.ask(ctx, m.askSecrets)
		}
		if m.verifier.Orphaned(m.State().Chain) {
			m.ask(ctx, m.askRenewal)
		}
	})
}

// errNotHim says that a member is not to be asked.
var errNotHim = errors.New("not one to ask")

// ask has fn ask connected members, admins first, until one of them answers.
func (m *Membership) ask(ctx context.Context, fn func(context.Context, peer.ID, trust.Identity) error) {
	all := m.connected()
	for _, admins := range []bool{true, false} {
		for _, c := range all {
			if (c.who.Role == trust.RoleAdmin) != admins {
				continue
			}
			call, cancel := context.WithTimeout(ctx, callTimeout)
			err := fn(call, c.id, c.who)
			cancel()
			if err == nil || ctx.Err() != nil {
				return
			}
			if !errors.Is(err, errNotHim) {
				m.cfg.Log.Debug("a member that was asked for trust did not help", "peer", c.id, "err", err)
			}
		}
	}
}

func (m *Membership) askSecrets(ctx context.Context, id peer.ID, who trust.Identity) error {
	own := m.Identity()
	if who.Role != trust.RoleAdmin && (own.Role == trust.RoleAdmin || who.Farm != own.Farm || !who.Role.IsMember()) {
		return errNotHim
	}
	var r papers
	if err := m.call(ctx, id, secretsMethod, struct{}{}, &r); err != nil {
		return err
	}
	rotation, err := r.rotation(m.verifier, own, m.cfg.Now())
	if err == nil && !rotation.Generation.Follows(m.State().Secrets.Generation) {
		err = fmt.Errorf("%w: it has generation %d itself", content.ErrUnavailable, rotation.Generation.Number)
	}
	if err != nil {
		return err
	}
	return m.adopt(r.Secrets, r.Rotation)
}

// renewFor gives a member whose issuer was revoked another certificate, of the same
// role and farm. That it is one of before the revocation was learnt of has been proved
// by its being known here. An admin gets none unasked: one that an admin gone bad had
// made beforehand would outlive it, with more behind it than before.
func (m *Membership) renewFor(id trust.Identity) (p papers, err error) {
	if err := m.admin("renew"); err != nil {
		return p, err
	}
	if id.Role == trust.RoleAdmin {
		return p, fmt.Errorf("renew: %w: %s is an admin by the word of one that was revoked; it joins anew, with an empty --data and a token of an admin", content.ErrForbidden, id.Key)
	}
	signer, err := m.issuer(id.Role)
	if err != nil {
		return p, err
	}
	e, ok := m.roll.of(id.Key)
	switch {
	case !ok || e.Chain.Identity() != id || !m.verifier.Orphaned(e.Chain):
		return p, fmt.Errorf("renew: %w: the certificate of %s is good as it is", content.ErrInvalid, id.Key)
	case signer.Renewed != nil && m.verifier.Orphaned(signer.Renewed()):
		return p, fmt.Errorf("renew: %w: this admin's own issuer was revoked", content.ErrUnavailable)
	}
	if p.Chain, err = signer.Issue(id, m.cfg.Now()); err != nil {
		return p, err
	}
	m.cfg.Log.Info("a member's certificate was renewed", "peer", identity.PeerID(id.Key), "role", id.Role, "farm", id.Farm)
	return p, nil
}

func (m *Membership) askRenewal(ctx context.Context, id peer.ID, who trust.Identity) error {
	if who.Role != trust.RoleAdmin {
		return errNotHim
	}
	var r papers
	if err := m.call(ctx, id, renewMethod, struct{}{}, &r); err != nil {
		return err
	}
	got, err := m.verifier.Verify(r.Chain, m.cfg.Now())
	if err == nil && (got != m.Identity() || m.verifier.Orphaned(r.Chain)) {
		err = fmt.Errorf("the certificate that came back: %w: it says %s of farm %q", content.ErrForbidden, got.Role, got.Farm)
	}
	if err != nil {
		return err
	}
	return m.recertify(r.Chain)
}

// recertify makes another certificate this member's.
func (m *Membership) recertify(chain trust.Chain) error {
	if err := m.change(func(s *State) error { s.Chain = chain; return nil }); err != nil {
		return err
	}
	m.roll.proved(chain, m.cfg.Name, m.cfg.Now())
	m.cfg.Log.Info("this node has a new certificate", "role", m.Identity().Role, "farm", m.Identity().Farm)
	m.cfg.OnRenewed(chain)
	return nil
}

// call asks a member.
func (m *Membership) call(ctx context.Context, id peer.ID, method string, q, a any) error {
	body, err := m.codec.Marshal(q)
	if err != nil {
		return err
	}
	b, err := m.network.Call(ctx, id, method, body)
	if err != nil {
		return err
	}
	return m.codec.Unmarshal(b, a)
}

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
		chain, err := trust.Signer{Key: key}.Issue(trust.Identity{Key: id.Key, Role: trust.RoleAdmin, Farm: id.Farm}, m.cfg.Now())
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
