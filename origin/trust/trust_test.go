package trust

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
)

func epoch() time.Time { return time.Unix(1_800_000_000, 0) }

type world struct {
	mesh     PrivateKey
	founder  Signer
	secrets  Secrets
	verifier *Verifier
}

func newWorld(t *testing.T) world {
	t.Helper()
	key := NewPrivateKey()
	mesh := NewPrivateKey()
	chain, err := Signer{Key: mesh}.Issue(Identity{key.Public(), RoleAdmin, "a"}, epoch())
	if err != nil {
		t.Fatal(err)
	}
	return world{mesh, Signer{Key: key, Chain: chain}, NewSecrets(1).For(RoleAdmin, "a"), NewVerifier(mesh.Public())}
}

func (w world) member(t *testing.T, issuer Signer, role Role, farm string) Signer {
	t.Helper()
	key := NewPrivateKey()
	chain, err := issuer.Issue(Identity{key.Public(), role, farm}, epoch())
	if err != nil {
		t.Fatal(err)
	}
	return Signer{Key: key, Chain: chain}
}

func TestChains(t *testing.T) {
	w := newWorld(t)
	node := w.member(t, w.founder, RoleNode, "b")
	delegate := w.member(t, w.founder, RoleAdmin, "b")
	other := newWorld(t)
	tests := []struct {
		name  string
		chain Chain
		at    time.Time
		ok    bool
	}{
		{"founder", w.founder.Chain, epoch(), true},
		{"node of the founder", node.Chain, epoch(), true},
		{"node of a delegated admin", w.member(t, delegate, RoleNode, "c").Chain, epoch(), true},
		{"node signed by a node", w.member(t, node, RoleNode, "b").Chain, epoch(), false},
		{"node of another mesh", other.member(t, other.founder, RoleNode, "b").Chain, epoch(), false},
		{"no chain", nil, epoch(), false},
		{"chain without its issuer", node.Chain[:1], epoch(), false},
		{"before its time", node.Chain, epoch().Add(-time.Hour), false},
		{"expired", node.Chain, epoch().Add(certificateLifetime + time.Hour), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := w.verifier.Verify(tt.chain, tt.at)
			if tt.ok && (err != nil || id != tt.chain.Identity()) {
				t.Errorf("Verify = %v, %v", id, err)
			}
			if !tt.ok && !errors.Is(err, content.ErrForbidden) {
				t.Errorf("Verify = %v, want ErrForbidden", err)
			}
		})
	}
	if _, err := w.member(t, delegate, RoleAdmin, "c").Issue(Identity{node.Key.Public(), RoleNode, "c"}, epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a chain longer than %d was issued: %v", chainMax, err)
	}
}

func TestRevokedKeySignsNothingSince(t *testing.T) {
	w := newWorld(t)
	admin := w.member(t, w.founder, RoleAdmin, "a")
	node := w.member(t, admin, RoleNode, "a")
	w.verifier.Revoke(map[PublicKey]time.Time{admin.Key.Public(): epoch().Add(time.Hour)})
	if _, err := w.verifier.Verify(node.Chain, epoch()); err != nil {
		t.Errorf("before the revocation: %v", err)
	}
	if _, err := w.verifier.Verify(node.Chain, epoch().Add(2*time.Hour)); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("after the revocation of its issuer: %v, want ErrForbidden", err)
	}
}

// TestRevokedKeyIsBelievedInWhatWasSeenBefore has a publisher revoked: what honest
// members had seen stays, whatever it signs afterwards counts as of any time.
func TestRevokedKeyIsBelievedInWhatWasSeenBefore(t *testing.T) {
	w := newWorld(t)
	publisher := w.member(t, w.founder, RolePublisher, "a")
	b, err := publisher.Seal(Envelope{Kind: content.KindImage, Name: "debian", Version: 1, SignedAt: epoch()})
	if err != nil {
		t.Fatal(err)
	}
	learnt := epoch().Add(time.Hour)
	w.verifier.Revoke(map[PublicKey]time.Time{publisher.Key.Public(): learnt})
	for _, tt := range []struct {
		seen time.Time
		ok   bool
	}{{epoch(), true}, {learnt.Add(-time.Second), true}, {learnt, false}, {learnt.Add(time.Hour), false}} {
		_, err := w.verifier.Open(b, tt.seen, learnt.Add(2*time.Hour))
		if tt.ok && err != nil || !tt.ok && !errors.Is(err, content.ErrForbidden) {
			t.Errorf("seen at %s: %v", tt.seen, err)
		}
	}
}

func TestRoles(t *testing.T) {
	kinds := []content.Kind{content.KindImage, content.KindTag, content.KindVolume, content.KindRevocation}
	scopes := []content.Scope{content.Public(), content.Mesh(), content.Farm("a"), content.Farm("b"), content.Farm(""), {}}
	tests := []struct {
		id   Identity
		sign string // one letter a kind, for farm a
		read string // one letter a scope
	}{
		{Identity{}, "....", "y....."},
		{Identity{Role: RoleSeed}, "....", "y....."},
		{Identity{Role: RoleNode, Farm: "a"}, "..y.", "yyy..."},
		{Identity{Role: RolePublisher, Farm: "a"}, "yyy.", "yyy..."},
		{Identity{Role: RoleAdmin, Farm: "a"}, "yyyy", "yyy..."},
		{Identity{Role: RoleAdmin, Farm: "b"}, "...y", "yy.y.."},
	}
	mark := func(b *strings.Builder, ok bool) { b.WriteByte(map[bool]byte{true: 'y', false: '.'}[ok]) }
	for _, tt := range tests {
		var sign, read strings.Builder
		for _, k := range kinds {
			mark(&sign, tt.id.MaySign(k, "a"))
		}
		for _, s := range scopes {
			mark(&read, tt.id.MayRead(s))
		}
		if sign.String() != tt.sign || read.String() != tt.read {
			t.Errorf("%s of %q: signs %s, reads %s; want %s, %s", tt.id.Role, tt.id.Farm, &sign, &read, tt.sign, tt.read)
		}
	}
}

func TestEnvelope(t *testing.T) {
	w := newWorld(t)
	node := w.member(t, w.founder, RoleNode, "a")
	e := Envelope{Kind: content.KindVolume, Name: "web1", Version: 3, SignedAt: epoch(), Commit: Commit{1}, Farm: "a", Body: []byte("body")}
	b, err := node.Seal(e)
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.verifier.Open(b, epoch(), epoch())
	if err != nil || got.Name != e.Name || got.Version != e.Version || got.Commit != e.Commit || !bytes.Equal(got.Body, e.Body) || got.Signer != node.Chain.Identity() {
		t.Fatalf("Open = %+v, %v", got, err)
	}
	for i := range b {
		flipped := bytes.Clone(b)
		flipped[i] ^= 1
		if _, err := w.verifier.Open(flipped, epoch(), epoch()); err == nil {
			t.Fatalf("byte %d flipped: accepted", i)
		}
	}
	if _, err := newWorld(t).verifier.Open(b, epoch(), epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("in another mesh: %v, want ErrForbidden", err)
	}
	if _, err := w.verifier.Open(b, epoch().Add(-time.Hour), epoch().Add(-time.Hour)); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("from the future: %v, want ErrForbidden", err)
	}
	e.Kind, e.Farm = content.KindImage, ""
	if _, err := node.Seal(e); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a node sealed an image: %v", err)
	}
	e.Body = make([]byte, content.RecordSizeMax)
	if _, err := w.founder.Seal(e); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("an oversized record was sealed: %v", err)
	}
}

func TestStatement(t *testing.T) {
	w := newWorld(t)
	st := Statement{Kind: content.KindImage, Name: "debian", Version: 2, SeenAt: epoch()}
	b, err := w.founder.State(st)
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.verifier.OpenStatement(b, epoch())
	if st.Signer = w.founder.Chain.Identity(); err != nil || got != st {
		t.Fatalf("OpenStatement = %+v, %v", got, err)
	}
	w.verifier.Revoke(map[PublicKey]time.Time{w.founder.Key.Public(): epoch()})
	if _, err := w.verifier.OpenStatement(b, epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a revoked member's: %v, want ErrForbidden", err)
	}
	w.verifier.Revoke(nil)
	for i := range b {
		flipped := bytes.Clone(b)
		flipped[i] ^= 1
		if _, err := w.verifier.OpenStatement(flipped, epoch()); err == nil {
			t.Fatalf("byte %d flipped: accepted", i)
		}
	}
	if _, err := w.verifier.OpenStatement(b, epoch().Add(-time.Hour)); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("from the future: %v, want ErrForbidden", err)
	}
	envelope, err := w.founder.Seal(Envelope{Kind: st.Kind, Name: st.Name, Version: st.Version, SignedAt: epoch()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.verifier.OpenStatement(envelope, epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a record taken for a statement: %v, want ErrForbidden", err)
	}
	seed, err := w.member(t, w.founder, RoleSeed, "").State(st)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.verifier.OpenStatement(seed, epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a seed's statement: %v, want ErrForbidden", err)
	}
}

func TestSecretsReachOnlyTheirFarm(t *testing.T) {
	w := newWorld(t)
	b := w.secrets.For(RoleNode, "b")
	if b.Gossip == w.secrets.Gossip || b.Gossip == [32]byte{} || b.Announce != w.secrets.Announce {
		t.Error("farm b must have a gossip key of its own and the mesh's announce key")
	}
	if b.Root != [32]byte{} || w.secrets.For(RoleSeed, "") != (Secrets{Generation: w.secrets.Generation}) {
		t.Error("a node must not derive other farms' keys, and a seed gets no secret")
	}
	if w.secrets.For(RoleAdmin, "b").For(RoleNode, "a").Gossip != w.secrets.Gossip {
		t.Error("a second admin must derive the same gossip key for farm a")
	}
	next := NewSecrets(2).For(RoleNode, "a")
	if next.Gossip == w.secrets.Gossip || next.Announce == w.secrets.Announce || !next.Generation.Follows(w.secrets.Generation) {
		t.Error("another generation must have other secrets")
	}
}

// TestRotationTellsTheSecretsOfItsFarm, those of its admin, and no others.
func TestRotationTellsTheSecretsOfItsFarm(t *testing.T) {
	w := newWorld(t)
	next := NewSecrets(2)
	b, err := w.founder.Rotate(next, "b", epoch())
	if err != nil {
		t.Fatal(err)
	}
	r, err := w.verifier.OpenRotation(b, epoch())
	if err != nil || r.Generation != next.Generation {
		t.Fatalf("%+v, %v", r, err)
	}
	forged := next.For(RoleNode, "b")
	forged.Gossip[0] ^= 1
	rootless := next.For(RoleAdmin, "b")
	rootless.Root = NewSecrets(2).Root
	for name, x := range map[string]struct {
		s    Secrets
		role Role
		farm string
		ok   bool
	}{
		"its node's": {next.For(RoleNode, "b"), RoleNode, "b", true}, "its admin's": {next.For(RoleAdmin, "b"), RoleAdmin, "b", true},
		"another farm's": {next.For(RoleNode, "a"), RoleNode, "a", false}, "another farm's by its name": {next.For(RoleNode, "a"), RoleNode, "b", false},
		"another generation's": {NewSecrets(2).For(RoleNode, "b"), RoleNode, "b", false}, "forged": {forged, RoleNode, "b", false},
		"an admin's with another root": {rootless, RoleAdmin, "b", false},
	} {
		if err := r.Admit(x.s, x.role, x.farm); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	node, err := w.member(t, w.founder, RoleNode, "b").Rotate(next, "b", epoch())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.verifier.OpenRotation(node, epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a node's rotation: %v", err)
	}
	w.verifier.Revoke(map[PublicKey]time.Time{w.founder.Key.Public(): epoch()})
	if _, err := w.verifier.OpenRotation(b, epoch().Add(time.Hour)); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a revoked admin's rotation: %v", err)
	}
}

func TestToken(t *testing.T) {
	w := newWorld(t)
	tok := Token{Mesh: w.mesh.Public(), Origin: "s3://b/p", Bootstrap: []string{"/ip4/10.0.0.1/tcp/1"}, Role: RoleNode, Farm: "a", Expires: epoch().Add(time.Hour).Unix()}
	s := tok.String()
	got, err := ParseToken(" "+s+"\n", epoch())
	if err != nil || got.String() != s {
		t.Fatalf("ParseToken = %+v, %v", got, err)
	}
	mistyped := []byte(s)
	if mistyped[40] = 'A'; s[40] == 'A' {
		mistyped[40] = 'B'
	}
	for name, bad := range map[string]string{"empty": "", "cut": s[:len(s)-3], "mistyped": string(mistyped), "other": "hello"} {
		if _, err := ParseToken(bad, epoch()); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := ParseToken(s, epoch().Add(2*time.Hour)); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("expired: %v, want ErrForbidden", err)
	}
}

func TestInviteIsGoodOnce(t *testing.T) {
	dir := t.TempDir()
	open := func() *Invites {
		l, err := OpenInvites(dir)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	inv, st, err := open().Create(RoleNode, "a", epoch(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	alice, bob := NewPrivateKey().Public(), NewPrivateKey().Public()
	wrong := inv
	wrong.Secret[0] ^= 1
	if _, err := open().Redeem(wrong, bob, epoch(), nil); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("wrong secret: %v", err)
	}
	if _, err := open().Redeem(inv, bob, epoch().Add(2*time.Hour), nil); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("expired: %v", err)
	}
	admin := newWorld(t).founder
	redeem := func(inv Invite, key PublicKey, at time.Time) (Chain, error) {
		return open().Redeem(inv, key, at, func(id Identity) (Chain, error) { return admin.Issue(id, at) })
	}
	var first Chain
	for range 2 { // a restart between, as after a lost reply
		got, err := redeem(inv, alice, epoch())
		if err != nil || got.Identity() != (Identity{alice, RoleNode, "a"}) {
			t.Fatalf("Redeem = %+v, %v", got, err)
		}
		if first == nil {
			first = got
		}
		if got[0].Sum() != first[0].Sum() {
			t.Error("the second time it is another certificate")
		}
	}
	for _, at := range []time.Duration{redeemAgain + time.Second, 2 * time.Hour, certificateLifetime} {
		if _, err := redeem(inv, alice, epoch().Add(at)); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("used, and again after %s: %v", at, err)
		}
	}
	if _, err := redeem(inv, bob, epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("second user: %v", err)
	}
	if _, err := open().Revoke(st.ID); !errors.Is(err, content.ErrConflict) {
		t.Errorf("revoke a used invite: %v", err)
	}
	unused, st, err := open().Create(RoleSeed, "", epoch().Add(time.Second), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open().Revoke(st.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := redeem(unused, bob, epoch()); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("revoked: %v", err)
	}
	if list, err := open().List(); err != nil || len(list) != 2 || list[0].UsedBy == nil || !list[1].Revoked {
		t.Errorf("List = %+v, %v", list, err)
	}
}

func TestAFullLedgerForgetsWhatExpired(t *testing.T) {
	l, err := OpenInvites(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, lifetime := range []time.Duration{time.Minute, time.Hour, time.Hour} {
		if _, _, err := l.Create(RoleNode, "a", epoch(), lifetime); err != nil {
			t.Fatal(err)
		}
	}
	later := epoch().Add(30 * time.Minute)
	for _, c := range []struct {
		limit int
		now   time.Time
		want  error
		left  int
	}{{3, epoch(), content.ErrNoSpace, 3}, {4, later, nil, 3}, {3, later, nil, 2}} {
		if err := l.makeRoom(c.limit, c.now); !errors.Is(err, c.want) {
			t.Errorf("limit %d: %v, want %v", c.limit, err, c.want)
		}
		if all, err := l.List(); err != nil || len(all) != c.left {
			t.Errorf("limit %d: %d invites are left, want %d, %v", c.limit, len(all), c.left, err)
		}
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := LoadKey(path); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	k := NewPrivateKey()
	if err := SaveKey(path, k); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadKey(path); err != nil || got != k {
		t.Errorf("LoadKey = %v, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(path); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("junk: %v", err)
	}
}

// TestGolden holds the signed formats: a fixed key and time give fixed bytes.
func TestGolden(t *testing.T) {
	mesh, err := PrivateKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	c := Certificate{Serial: [16]byte{1}, Subject: mesh.Public(), Role: RoleAdmin, Farm: "a", NotBefore: epoch(), NotAfter: epoch().Add(time.Hour), Issuer: mesh.Public()}
	chain := Chain{c.signed(mesh)}
	e, err := Signer{Key: mesh, Chain: chain}.Seal(Envelope{Kind: content.KindImage, Name: "debian", Version: 1, SignedAt: epoch(), Commit: Commit{2}, Body: []byte("body")})
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "envelope.hex", []byte(hex.EncodeToString(e)+"\n"))
	if _, err := NewVerifier(mesh.Public()).Open(e, epoch(), epoch()); err != nil {
		t.Errorf("golden envelope: %v", err)
	}
	st, err := Signer{Key: mesh, Chain: chain}.State(Statement{Kind: content.KindImage, Name: "debian", Version: 1, SeenAt: epoch()})
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "statement.hex", []byte(hex.EncodeToString(st)+"\n"))
}

func FuzzOpen(f *testing.F) {
	key := NewPrivateKey()
	mesh := NewPrivateKey()
	chain, err := Signer{Key: mesh}.Issue(Identity{key.Public(), RoleAdmin, "a"}, epoch())
	if err != nil {
		f.Fatal(err)
	}
	b, err := Signer{Key: key, Chain: chain}.Seal(Envelope{Kind: content.KindImage, Name: "debian", SignedAt: epoch()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	v := NewVerifier(mesh.Public())
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, err := v.Open(in, epoch(), epoch()); err == nil && !bytes.Equal(in, b) {
			t.Errorf("accepted %x", in)
		}
		v.OpenStatement(in, epoch())
		v.OpenRevocation(in, epoch(), epoch())
		v.OpenRotation(in, epoch())
		ParseToken(tokenPrefix+string(in), epoch())
	})
}

func BenchmarkOpen(b *testing.B) {
	key := NewPrivateKey()
	mesh := NewPrivateKey()
	chain, _ := Signer{Key: mesh}.Issue(Identity{key.Public(), RoleAdmin, "a"}, epoch())
	e, _ := Signer{Key: key, Chain: chain}.Seal(Envelope{Kind: content.KindImage, Name: "debian", SignedAt: epoch()})
	v := NewVerifier(mesh.Public())
	for b.Loop() {
		if _, err := v.Open(e, epoch(), epoch()); err != nil {
			b.Fatal(err)
		}
	}
}
