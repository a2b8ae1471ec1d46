package membership

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
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

// adopt makes newer secrets this member's.
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
	if p.Chain, err = signer.Issue(trust.Grant{Subject: id.Key, Role: id.Role, Farm: id.Farm}, m.cfg.Now()); err != nil {
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
