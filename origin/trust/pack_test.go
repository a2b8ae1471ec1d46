package trust

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

func somePack(s content.Scope) Pack {
	return Pack{s.String() + "/2026112022-000102030405060708090a0b0c0d0e0f", s, content.Sum([]byte("directory"))}
}

func TestWhoVouchesForPacks(t *testing.T) {
	w := newWorld(t)
	seed, node := w.member(t, w.founder, RoleSeed, ""), w.member(t, w.founder, RoleNode, "b")
	publisher, other := w.member(t, w.founder, RolePublisher, "b"), newWorld(t)
	for _, c := range []struct {
		name   string
		signer Signer
		scope  content.Scope
		ok     bool
	}{
		{"admin, public", w.founder, content.Public(), true},
		{"publisher, public", publisher, content.Public(), true},
		{"publisher, mesh", publisher, content.Mesh(), true},
		{"publisher, its farm", publisher, content.Farm("b"), true},
		{"publisher, another farm", publisher, content.Farm("a"), false},
		{"node, its farm", node, content.Farm("b"), true},
		{"node, another farm", node, content.Farm("a"), false},
		{"node, mesh", node, content.Mesh(), false},
		{"node, public", node, content.Public(), false},
		{"seed, public", seed, content.Public(), false},
		{"admin of another mesh", other.founder, content.Public(), false},
		{"no certificate", Signer{Key: seed.Key}, content.Public(), false},
		{"the mesh key itself", Signer{Key: w.mesh}, content.Public(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := somePack(c.scope)
			if _, err := c.signer.SealPack(p, epoch()); c.ok && err != nil {
				t.Fatal(err)
			}
			// One that asks no such question of itself is refused as well.
			b, err := c.signer.seal(labelPack, packWire{packMagic, p, epoch().UnixMilli()})
			if err != nil {
				t.Fatal(err)
			}
			at, err := w.verifier.OpenPack(b, p, epoch(), epoch())
			if c.ok != (err == nil) || c.ok && !at.Equal(epoch()) || !c.ok && !errors.Is(err, content.ErrForbidden) {
				t.Fatalf("read: %s, %v", at, err)
			}
		})
	}
}

func TestAPackSignatureIsForOnePack(t *testing.T) {
	w := newWorld(t)
	p := somePack(content.Public())
	b, err := w.founder.SealPack(p, epoch())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Pack){
		"another pack":      func(p *Pack) { p.ID = p.ID[:len(p.ID)-1] + "0" },
		"another scope":     func(p *Pack) { p.Scope = content.Mesh() },
		"another directory": func(p *Pack) { p.Directory[3] ^= 1 },
	} {
		asked := p
		change(&asked)
		if _, err := w.verifier.OpenPack(b, asked, epoch(), epoch()); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("%s: %v, want ErrForbidden", name, err)
		}
	}
	for i := range b {
		flipped := bytes.Clone(b)
		flipped[i] ^= 0x10
		if _, err := w.verifier.OpenPack(flipped, p, epoch(), epoch()); !errors.Is(err, content.ErrForbidden) && !errors.Is(err, content.ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	// What was signed to another purpose is none.
	sealed, err := w.founder.Seal(Envelope{Kind: content.KindImage, Name: "a", Version: 1, SignedAt: epoch()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.verifier.OpenPack(sealed, p, epoch(), epoch()); err == nil {
		t.Fatal("a record passes for the signature of a pack")
	}
	if _, err := w.verifier.OpenPack(b, p, epoch(), epoch().Add(-time.Hour)); !errors.Is(err, content.ErrForbidden) {
		t.Fatalf("signed in the future: %v", err)
	}
}

func TestARevokedSignerOfPacks(t *testing.T) {
	w := newWorld(t)
	publisher, p := w.member(t, w.founder, RolePublisher, "b"), somePack(content.Mesh())
	b, err := publisher.SealPack(p, epoch())
	if err != nil {
		t.Fatal(err)
	}
	learnt := epoch().Add(time.Hour)
	w.verifier.Revoke(map[PublicKey]time.Time{publisher.Key.Public(): learnt})
	if _, err := w.verifier.OpenPack(b, p, learnt.Add(-time.Minute), learnt.Add(time.Hour)); err != nil {
		t.Fatalf("what the store had before: %v", err)
	}
	if _, err := w.verifier.OpenPack(b, p, learnt.Add(time.Minute), learnt.Add(time.Hour)); !errors.Is(err, content.ErrForbidden) {
		t.Fatalf("what came after, said to be from before: %v", err)
	}
}

func FuzzOpenPack(f *testing.F) {
	key := NewPrivateKey()
	mesh := NewPrivateKey()
	chain, err := Signer{Key: mesh}.Issue(Identity{key.Public(), RoleAdmin, "a"}, epoch())
	if err != nil {
		f.Fatal(err)
	}
	v, p := NewVerifier(mesh.Public()), somePack(content.Public())
	b, err := Signer{Key: key, Chain: chain}.SealPack(p, epoch())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, got []byte) {
		_, err := v.OpenPack(got, p, epoch(), epoch())
		if err != nil && !errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrForbidden) {
			t.Fatalf("a decoder's error must be ErrCorrupt or ErrForbidden: %v", err)
		}
	})
}
