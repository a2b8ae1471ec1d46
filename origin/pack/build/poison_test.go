package build

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// claim is a pack that says it holds the chunks of im, and holds noise. Who has a
// key signs it.
func claim(t *testing.T, im image, id pack.ID, sign pack.Sign) pack.Sealed {
	t.Helper()
	w := pack.NewWriter(id, nil)
	for i, chunk := range im.chunks {
		w.Add(pack.RoleChunk, content.Sum(chunk), len(chunk), pack.CodecRaw, chunkOf(1<<40+i, len(chunk)))
	}
	s, err := w.Seal(sign)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publicID(t *testing.T) pack.ID {
	t.Helper()
	id, err := pack.ParseID("public/2025010100-ffeeddccbbaa99887766554433221100")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// put adds an object, as whoever may write to the bucket does.
func (m *memory) put(t *testing.T, key string, b []byte) {
	t.Helper()
	if _, err := m.Put(t.Context(), key, bucket.Bytes(b), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
}

// everything is what an importer may refer to.
func everything() []content.Scope { return []content.Scope{content.Public(), content.Mesh()} }

// imported builds im with what the bucket is believed to hold, and checks it.
func (m *memory) imported(t *testing.T, dir string, im image) Stats {
	t.Helper()
	x := m.loadIndex(t, dir, everything()...)
	cfg := config(m, im)
	cfg.Known, cfg.Random, cfg.Now = x, nil, func() time.Time { return m.at }
	h, s := build(t, cfg, im)
	check(t, m, h, im)
	if err := x.Save(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Whoever may write to the bucket, without a key, claims chunks: nobody refers to
// them, and what is imported is whole.
func TestPoisonWithoutAKey(t *testing.T) {
	im := newImage(300, 1, 0)
	for name, poison := range map[string]func(t *testing.T, to *memory){
		"a pack directory": func(t *testing.T, to *memory) {
			s := claim(t, im, publicID(t), nil)
			to.put(t, s.ID.Key(), s.Bytes)
		},
		"an index object over a pack that says the same": func(t *testing.T, to *memory) {
			s := claim(t, im, publicID(t), nil)
			to.put(t, s.ID.Key(), s.Bytes)
			if err := index.Store(t.Context(), to, s.ID, []index.Pack{{ID: s.ID, Entries: s.Directory}}); err != nil {
				t.Fatal(err)
			}
		},
		"an index object over noise": func(t *testing.T, to *memory) {
			s := claim(t, im, publicID(t), nil)
			to.put(t, s.ID.Key(), bytes.Repeat([]byte{7}, len(s.Bytes)))
			if err := index.Store(t.Context(), to, s.ID, []index.Pack{{ID: s.ID, Entries: s.Directory}}); err != nil {
				t.Fatal(err)
			}
		},
		"the signature of another pack": func(t *testing.T, to *memory) {
			other := newImage(300, 1, 5000)
			build(t, config(to, other), other)
			id, err := pack.ParseKey(to.Keys("packs/")[0])
			if err != nil {
				t.Fatal(err)
			}
			d, err := pack.NewReader(to).ReadDirectory(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			s := claim(t, im, publicID(t), func(pack.ID, content.CID) ([]byte, error) { return d.Signature, nil })
			to.put(t, s.ID.Key(), s.Bytes)
		},
		"an honest pack whose entries an index object swaps": func(t *testing.T, to *memory) {
			other := newImage(300, 1, 5000)
			build(t, config(to, other), other)
			for _, key := range to.Keys("index/") {
				if err := to.Delete(t.Context(), key); err != nil {
					t.Fatal(err)
				}
			}
			id, err := pack.ParseKey(to.Keys("packs/")[0])
			if err != nil {
				t.Fatal(err)
			}
			d, err := pack.NewReader(to).ReadDirectory(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			honest := d.Signature
			for i := range d.Entries {
				d.Entries[i].CID = content.Sum(im.chunks[uint64(i)])
			}
			if err := index.Store(t.Context(), to, publicID(t), []index.Pack{{ID: id, Entries: d.Encode(), Signature: honest}}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			to, dir := newMemory(t), t.TempDir()
			poison(t, to)
			if s := to.imported(t, dir, im); int(s.NewChunks) != len(im.chunks) {
				t.Fatalf("%d of %d chunks were stored", s.NewChunks, len(im.chunks))
			}
			// Once more, with what was remembered: from the importer's own packs.
			if s := to.imported(t, dir, im); s.NewChunks != 0 {
				t.Fatalf("%d chunks were stored again", s.NewChunks)
			}
		})
	}
}

// Members that may not write a scope vouch for nothing in it.
func TestPoisonByMembersOutOfTheirPlace(t *testing.T) {
	im := newImage(100, 1, 0)
	to := newMemory(t)
	publisher := to.member(t, trust.RolePublisher, "b")
	stranger := newMesh(t, now()).founder
	to.verifier.Revoke(map[trust.PublicKey]time.Time{publisher.Key.Public(): now().Add(-time.Minute)})
	public := publicID(t)
	farm := pack.ID("farm/a" + strings.TrimPrefix(string(public), "public"))
	for name, c := range map[string]struct {
		signer   trust.Signer
		id       pack.ID
		believed bool // else the frames are looked at, and found to be noise
	}{
		"a publisher":                        {to.founder, public, true},
		"a node, for its farm's":             {to.member(t, trust.RoleNode, "a"), farm, true},
		"a seed":                             {to.member(t, trust.RoleSeed, ""), public, false},
		"a node, for the mesh's":             {to.member(t, trust.RoleNode, "a"), public, false},
		"a node of another farm":             {to.member(t, trust.RoleNode, "b"), farm, false},
		"a publisher of another farm":        {to.member(t, trust.RolePublisher, "b"), farm, false},
		"a publisher after its revocation":   {publisher, public, false},
		"an admin of another mesh":           {stranger, public, false},
		"a key that pretends to be an admin": {trust.Signer{Key: trust.NewPrivateKey(), Chain: to.founder.Chain}, public, false},
	} {
		t.Run(name, func(t *testing.T) {
			to.set(t, c.id.Key(), claim(t, im, c.id, lie(t, c.signer)).Bytes)
			x := to.loadIndex(t, "", content.Public(), content.Farm("a"))
			if x.Len() == 0 {
				t.Fatal("the pack was not looked at")
			}
			for i, chunk := range im.chunks {
				if at, ok := x.Locate(t.Context(), content.Sum(chunk)); ok != c.believed {
					t.Fatalf("chunk %d is believed to be in %s: %v", i, at, ok)
				}
			}
			if err := to.Delete(t.Context(), c.id.Key()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// lie signs a directory as SealPack does, but without asking whether the signer may.
func lie(t *testing.T, s trust.Signer) pack.Sign {
	t.Helper()
	return func(id pack.ID, directory content.CID) ([]byte, error) {
		codec := content.NewCodec()
		payload, err := codec.Marshal(struct {
			Magic     string        `cbor:"magic"`
			ID        string        `cbor:"id"`
			Scope     content.Scope `cbor:"scope"`
			Directory content.CID   `cbor:"directory"`
			SignedAt  int64         `cbor:"signed"`
		}{"grange-pack-signature/1", string(id), id.Scope(), directory, now().UnixMilli()})
		if err != nil {
			return nil, err
		}
		key := ed25519.NewKeyFromSeed(s.Key.Seed())
		return codec.Marshal(struct {
			_         struct{} `cbor:",toarray"`
			Payload   []byte
			Signature []byte
			Chain     trust.Chain
		}{Payload: payload, Signature: ed25519.Sign(key, append([]byte("grange pack 1\n"), payload...)), Chain: s.Chain})
	}
}

// storedBy has im stored by a signer, and returns the bucket with its calls
// forgotten.
func storedBy(t *testing.T, im image, signer func(*memory) trust.Signer) (*memory, Stats) {
	t.Helper()
	to := newMemory(t)
	cfg := config(to, im)
	cfg.Signer = signer(to)
	_, s := build(t, cfg, im)
	to.forget()
	return to, s
}

// What a member stored is referred to without a look at it: an import of unchanged
// content costs two lists a scope and the index object.
func TestHonestContentIsNotReadAgain(t *testing.T) {
	im := newImage(2000, 1, 0)
	to, _ := storedBy(t, im, func(m *memory) trust.Signer { return m.member(t, trust.RolePublisher, "b") })
	x := to.loadIndex(t, "", everything()...)
	cfg := config(to, im)
	cfg.Known, cfg.Random = x, neverRead{}
	if _, s := build(t, cfg, im); s.NewChunks != 0 || to.asked(mem.Get) != 1 || to.asked(mem.List) != 4 || to.asked(mem.Put) != 0 {
		t.Fatalf("%d new chunks, %d reads, %d lists, %d uploads", s.NewChunks, to.asked(mem.Get), to.asked(mem.List), to.asked(mem.Put))
	}
}

// What nobody vouches for is read by runs, once, and then remembered.
func TestForeignContentIsReadOnce(t *testing.T) {
	im := newImage(2000, 1, 0) // some 4.5 MiB in packs of 256 KiB
	for name, c := range map[string]struct {
		signer trust.Role // "" signs nothing
		later  time.Duration
	}{
		"stored by one that may not sign":   {trust.RoleNode, 0},
		"stored by nobody known":            {"", 0},
		"written again after it was signed": {trust.RolePublisher, 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			to, s := storedBy(t, im, func(m *memory) trust.Signer {
				m.at = now().Add(c.later)
				if c.signer == "" {
					return trust.Signer{}
				}
				return m.member(t, c.signer, "b")
			})
			dir := t.TempDir()
			to.loadIndex(t, dir, everything()...)
			to.forget()
			if s := to.imported(t, dir, im); s.NewChunks != 0 {
				t.Fatalf("%d chunks were stored again", s.NewChunks)
			}
			to.forget()
			x := to.loadIndex(t, dir, everything()...)
			reuse := func() {
				for i, chunk := range im.chunks {
					if _, ok := x.Locate(t.Context(), content.Sum(chunk)); !ok {
						t.Fatalf("chunk %d is not known", i)
					}
				}
			}
			reuse()
			if n := to.asked(mem.Get); n > 1 { // the index object of the second import
				t.Fatalf("%d reads, though the frames were hashed before", n)
			}
			x = to.loadIndex(t, "", everything()...)
			to.forget()
			reuse()
			if n := to.asked(mem.Get); n != s.Packs {
				t.Fatalf("%d reads to hash %d packs, none of which is longer than a run", n, s.Packs)
			}
		})
	}
}

// A pack that was hashed is hashed again once the store has another in its place.
func TestAPackThatChangedIsHashedAgain(t *testing.T) {
	im, dir := newImage(40, 1, 0), t.TempDir()
	to, _ := storedBy(t, im, func(*memory) trust.Signer { return trust.Signer{} })
	to.loadIndex(t, dir, everything()...)
	if s := to.imported(t, dir, im); s.NewChunks != 0 {
		t.Fatalf("%d chunks were stored again", s.NewChunks)
	}
	key := to.Keys("packs/")[0]
	b := bytes.Clone(to.object(t, key))
	for i := 16; i < 40*testChunk/2; i += testChunk / 4 {
		b[i] ^= 1
	}
	to.at = to.at.Add(time.Minute)
	to.set(t, key, b)
	if s := to.imported(t, dir, im); s.NewChunks == 0 {
		t.Fatal("damaged frames were referred to")
	}
}

// What a publisher that is revoked had stored before is referred to, once it was looked
// at: it may have gone bad before anybody noticed.
func TestARevokedPublisherKeepsWhatItStored(t *testing.T) {
	im := newImage(100, 1, 0)
	var publisher trust.Signer
	to, _ := storedBy(t, im, func(m *memory) trust.Signer {
		publisher = m.member(t, trust.RolePublisher, "b")
		return publisher
	})
	planting := to.at
	to.at = now().Add(time.Hour)
	to.verifier.Revoke(map[trust.PublicKey]time.Time{publisher.Key.Public(): to.at})
	since := to.at
	planted := newImage(100, 1, 5000)
	to.at = planting // before the revocation, with the key that was good then
	to.set(t, publicID(t).Key(), claim(t, planted, publicID(t), lie(t, publisher)).Bytes)
	to.at = since.Add(time.Hour)
	x := to.loadIndex(t, "", everything()...)
	for i, chunk := range im.chunks {
		if _, ok := x.Locate(t.Context(), content.Sum(chunk)); !ok {
			t.Fatalf("chunk %d is not known", i)
		}
	}
	for i, chunk := range planted.chunks {
		if at, ok := x.Locate(t.Context(), content.Sum(chunk)); ok {
			t.Fatalf("chunk %d is believed to be in %s, where noise is", i, at)
		}
	}
}

// Of an object in several packs the one is referred to that a member vouches for,
// and the one of the widest scope, whatever the names say of their age.
func TestWhichOfSeveralPacks(t *testing.T) {
	im := newImage(50, 1, 0)
	to := newMemory(t)
	for _, s := range []content.Scope{content.Farm("a"), content.Mesh(), content.Public()} {
		cfg := config(to, im)
		cfg.Scope, cfg.Random = s, nil
		build(t, cfg, im)
		to.put(t, strings.Replace(publicID(t).Key(), "public", s.String(), 1), claim(t, im, pack.ID(s.String()+strings.TrimPrefix(string(publicID(t)), "public")), nil).Bytes)
	}
	x := to.loadIndex(t, "", content.Farm("a"), content.Mesh(), content.Public())
	to.forget()
	for i, chunk := range im.chunks {
		at, ok := x.Locate(t.Context(), content.Sum(chunk))
		if !ok || !at.Pack.Scope().IsPublic() || to.asked(mem.Get) > 0 {
			t.Fatalf("chunk %d: known %v in %s, %d reads", i, ok, at, to.asked(mem.Get))
		}
	}
}

// An import reads nothing of packs that its scope may not refer to, and so tells
// nothing of them.
func TestOtherScopesAreNotLookedAt(t *testing.T) {
	im := newImage(200, 1, 0)
	empty, full := newMemory(t), newMemory(t)
	cfg := config(full, im)
	cfg.Scope = content.Farm("a")
	build(t, cfg, im)
	full.forget()
	for _, m := range []*memory{empty, full} {
		cfg := config(m, im)
		cfg.Scope, cfg.Known, cfg.Random = content.Public(), m.loadIndex(t, "", content.Public()), nil
		if _, s := build(t, cfg, im); int(s.NewChunks) != len(im.chunks) {
			t.Fatalf("%d new chunks", s.NewChunks)
		}
	}
	for _, op := range []mem.Op{mem.Get, mem.List, mem.Put} {
		if empty.asked(op) != full.asked(op) {
			t.Errorf("%d calls of %s beside private packs, else %d", full.asked(op), op, empty.asked(op))
		}
	}
}

// A reader that waits for a run which another one reads ends with its own ctx.
func TestLocateEndsWithItsContext(t *testing.T) {
	im := newImage(10, 1, 0)
	to, _ := storedBy(t, im, func(*memory) trust.Signer { return trust.Signer{} })
	x := to.loadIndex(t, "", everything()...)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := x.Locate(ctx, content.Sum(im.chunks[0])); ok {
		t.Fatal("located without a look")
	}
}
