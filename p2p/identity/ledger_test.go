package identity

import (
	"crypto/ed25519"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// member is a key with its peer ID.
type member struct {
	key trust.PrivateKey
	id  peer.ID
}

func newMember(t testing.TB) member {
	t.Helper()
	key := trust.NewPrivateKey()
	private, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(key.Seed()))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return member{key, id}
}

// certify returns the encoded chain of a member, issued by the mesh itself.
func certify(t testing.TB, mesh trust.PrivateKey, m member, farm string) []byte {
	t.Helper()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: m.key.Public(), Role: trust.RoleNode, Farm: farm}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, err := content.NewCodec().Marshal(chain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOnlyAChainAboutThePeerItselfProvesIt(t *testing.T) {
	mesh, m, other := trust.NewPrivateKey(), newMember(t), newMember(t)
	l := New(trust.NewVerifier(mesh.Public()), time.Now)
	for name, c := range map[string]struct {
		chain []byte
		want  error
	}{
		"none":              {nil, ErrNone},
		"garbage":           {[]byte("chain"), content.ErrCorrupt},
		"of another key":    {certify(t, mesh, other, "north"), content.ErrCorrupt},
		"of another mesh":   {certify(t, trust.NewPrivateKey(), m, "north"), content.ErrForbidden},
		"an empty sequence": {[]byte{0x80}, content.ErrCorrupt},
	} {
		if _, err := l.Present(m.id, c.chain); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if who, ok := l.Of(m.id); ok || who != (trust.Identity{}) {
			t.Errorf("%s: it is known as %v", name, who)
		}
	}
	good := certify(t, mesh, m, "north")
	for i := range 2 {
		if fresh, err := l.Present(m.id, good); err != nil || fresh != (i == 0) {
			t.Errorf("shown %d times: fresh %v, %v", i+1, fresh, err)
		}
	}
	if _, err := l.Present(m.id, nil); err != nil {
		t.Errorf("a peer that is known shows nothing: %v", err)
	}
	if who, ok := l.Of(m.id); !ok || who.Farm != "north" {
		t.Errorf("it is known as %v, %v", who, ok)
	}
	if fresh, err := l.Present(m.id, certify(t, mesh, m, "south")); err != nil || !fresh {
		t.Errorf("a certificate of another farm: fresh %v, %v", fresh, err)
	}
	if _, err := l.Present(m.id, certify(t, trust.NewPrivateKey(), m, "north")); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a worse certificate: %v", err)
	}
	if who, _ := l.Of(m.id); who.Farm != "south" {
		t.Errorf("it is known as %v", who)
	}
}

func TestRecheckFindsTheRevokedAndForgetsTheGone(t *testing.T) {
	mesh, here, gone, bad := trust.NewPrivateKey(), newMember(t), newMember(t), newMember(t)
	v := trust.NewVerifier(mesh.Public())
	now := time.Now()
	connected := func(id peer.ID) bool { return id != gone.id }
	l := New(v, func() time.Time { return now })
	for _, m := range []member{here, gone, bad} {
		if _, err := l.Present(m.id, certify(t, mesh, m, "north")); err != nil {
			t.Fatal(err)
		}
	}
	if lost := l.Recheck(connected); len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
	v.Revoke(map[trust.PublicKey]time.Time{bad.key.Public(): now})
	if lost := l.Recheck(connected); len(lost) != 1 || lost[0] != bad.id {
		t.Errorf("lost %v, want %v", lost, bad.id)
	}
	if _, err := l.Present(bad.id, certify(t, mesh, bad, "north")); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("the revoked comes back: %v", err)
	}
	now = now.Add(keptFor + time.Second)
	if lost := l.Recheck(connected); len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
	for id, want := range map[peer.ID]bool{here.id: true, gone.id: false, bad.id: false} {
		if _, ok := l.Of(id); ok != want {
			t.Errorf("%s is proved: %v", id, ok)
		}
	}
}

// BenchmarkPresent is what a hello costs: with a chain that is new, and with one that
// the peer has shown before.
func BenchmarkPresent(b *testing.B) {
	mesh, m := trust.NewPrivateKey(), newMember(b)
	v := trust.NewVerifier(mesh.Public())
	chain := certify(b, mesh, m, "north")
	b.Run("fresh", func(b *testing.B) {
		for b.Loop() {
			l := New(v, time.Now)
			if _, err := l.Present(m.id, chain); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("known", func(b *testing.B) {
		l := New(v, time.Now)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := l.Present(m.id, chain); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestBansEnd, and are bounded.
func TestBansEnd(t *testing.T) {
	now := time.Now()
	l := New(trust.NewVerifier(trust.NewPrivateKey().Public()), func() time.Time { return now })
	l.Ban("liar", time.Minute, "lied")
	if now = now.Add(59 * time.Second); !l.ShutOut("liar") || len(l.Bans()) != 1 || l.Bans()["liar"].Why != "lied" || !l.Bans()["liar"].Until.After(now) {
		t.Error("a ban ended early")
	}
	if now = now.Add(2 * time.Second); l.ShutOut("liar") || len(l.Bans()) != 0 {
		t.Error("a ban did not end")
	}
	for i := range bansMax + 10 {
		l.Ban(peer.ID(rune(i)), time.Minute, "")
	}
	if n := len(l.Bans()); n != bansMax {
		t.Errorf("%d bans", n)
	}
}

// TestRevokedAreShutOut for as long as the verifier says so, whatever they have proved.
func TestRevokedAreShutOut(t *testing.T) {
	mesh, m := trust.NewPrivateKey(), newMember(t)
	v := trust.NewVerifier(mesh.Public())
	l := New(v, time.Now)
	if l.ShutOut(m.id) {
		t.Error("shut out for nothing")
	}
	v.Revoke(map[trust.PublicKey]time.Time{m.key.Public(): time.Now()})
	if !l.ShutOut(m.id) || l.ShutOut(newMember(t).id) {
		t.Error("the revoked may connect, or another may not")
	}
	if v.Revoke(nil); l.ShutOut(m.id) {
		t.Error("shut out though the revocation does not count any more")
	}
}
