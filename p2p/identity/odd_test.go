package identity

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// TestOddChainsProveNothing: chains that are signed in full, but not by whom they need.
func TestOddChainsProveNothing(t *testing.T) {
	mesh, m, a, b := trust.NewPrivateKey(), newMember(t), newMember(t), newMember(t)
	issue := func(by trust.PrivateKey, above trust.Chain, to trust.PublicKey, role trust.Role, at time.Time) trust.Chain {
		chain, err := trust.Signer{Key: by, Chain: above[:min(len(above), 2)]}.Issue(trust.Identity{Key: to, Role: role, Farm: "north"}, at)
		if err != nil {
			t.Fatal(err)
		}
		return append(chain[:1:1], above...)
	}
	now := time.Now()
	old := now.Add(-11 * 365 * 24 * time.Hour)
	admin := issue(mesh, nil, a.key.Public(), trust.RoleAdmin, now)
	for name, c := range map[string]struct {
		chain trust.Chain
		want  error
	}{
		"by a node":          {issue(a.key, issue(mesh, nil, a.key.Public(), trust.RoleNode, now), m.key.Public(), trust.RoleAdmin, now), content.ErrForbidden},
		"by a publisher":     {issue(a.key, issue(mesh, nil, a.key.Public(), trust.RolePublisher, now), m.key.Public(), trust.RoleNode, now), content.ErrForbidden},
		"by itself":          {issue(m.key, nil, m.key.Public(), trust.RoleNode, now), content.ErrForbidden},
		"by itself, twice":   {issue(m.key, issue(m.key, nil, m.key.Public(), trust.RoleAdmin, now), m.key.Public(), trust.RoleNode, now), content.ErrForbidden},
		"a loop":             {issue(a.key, issue(b.key, issue(a.key, nil, b.key.Public(), trust.RoleAdmin, now), a.key.Public(), trust.RoleAdmin, now), m.key.Public(), trust.RoleNode, now), content.ErrForbidden},
		"of four":            {issue(m.key, issue(b.key, issue(a.key, admin, b.key.Public(), trust.RoleAdmin, now), m.key.Public(), trust.RoleAdmin, now), m.key.Public(), trust.RoleNode, now), content.ErrForbidden},
		"without its issuer": {issue(a.key, admin, m.key.Public(), trust.RoleNode, now)[:1], content.ErrForbidden},
		"expired":            {issue(mesh, nil, m.key.Public(), trust.RoleNode, old), content.ErrForbidden},
		"an expired issuer":  {issue(a.key, issue(mesh, nil, a.key.Public(), trust.RoleAdmin, old), m.key.Public(), trust.RoleNode, now), content.ErrForbidden},
		"of tomorrow":        {issue(mesh, nil, m.key.Public(), trust.RoleNode, now.Add(24*time.Hour)), content.ErrForbidden},
		"of the zero key":    {issue(mesh, nil, trust.PublicKey{}, trust.RoleNode, now), content.ErrCorrupt},
		"of its issuer":      {admin, content.ErrCorrupt},
	} {
		l := New(trust.NewVerifier(mesh.Public()), time.Now)
		encoded, err := content.NewCodec().Marshal(c.chain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Present(m.id, encoded); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if _, ok := l.Of(m.id); ok {
			t.Errorf("%s: it proves the peer", name)
		}
	}
}

// TestProofsEndMidWay: a certificate expires while its peer is connected, and one that
// was revoked is not good again by another certificate of the same key.
func TestProofsEndMidWay(t *testing.T) {
	mesh, m := trust.NewPrivateKey(), newMember(t)
	v := trust.NewVerifier(mesh.Public())
	now := time.Now()
	l := New(v, func() time.Time { return now })
	present := func() error { _, err := l.Present(m.id, certify(t, mesh, m, "north")); return err }
	if err := present(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(11 * 365 * 24 * time.Hour)
	if lost := l.Recheck(func(peer.ID) bool { return true }); len(lost) != 1 {
		t.Errorf("lost %v when the certificate expired", lost)
	}
	now = time.Now()
	if err := present(); err != nil {
		t.Fatal(err)
	}
	v.Revoke(map[trust.PublicKey]time.Time{m.key.Public(): now.Add(-time.Second)})
	if lost := l.Recheck(func(peer.ID) bool { return true }); len(lost) != 1 {
		t.Errorf("lost %v when it was revoked", lost)
	}
	if err := present(); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("another certificate of the revoked: %v", err)
	}
	if _, err := l.Present(m.id, nil); !errors.Is(err, ErrNone) {
		t.Errorf("the revoked shows nothing: %v", err)
	}
}
