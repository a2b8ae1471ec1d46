package build

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/mem"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
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
		signer trust.Signer
		id     pack.ID
	}{
		"a seed":                             {to.member(t, trust.RoleSeed, ""), public},
		"a node, for the mesh's":             {to.member(t, trust.RoleNode, "a"), public},
		"a node of another farm":             {to.member(t, trust.RoleNode, "b"), farm},
		"a publisher of another farm":        {to.member(t, trust.RolePublisher, "b"), farm},
		"a publisher after its revocation":   {publisher, public},
		"an admin of another mesh":           {stranger, public},
		"a key that pretends to be an admin": {trust.Signer{Key: trust.NewPrivateKey(), Chain: to.founder.Chain}, public},
	} {
		t.Run(name, func(t *testing.T) {
			to.set(t, c.id.Key(), claim(t, im, c.id, lie(c.signer)).Bytes)
			x := to.loadIndex(t, "", content.Public(), content.Farm("a"))
			for i, chunk := range im.chunks {
				if at, ok := x.Locate(t.Context(), content.Sum(chunk)); ok {
					t.Fatalf("chunk %d is believed to be in %s", i, at)
				}
			}
			if err := to.Delete(t.Context(), c.id.Key()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// lie signs a directory with the chain of a signer, whatever its role may: as an
// admin's or a node's own would, but for the question that Signer asks first.
func lie(s trust.Signer) pack.Sign {
	return func(id pack.ID, directory content.CID) ([]byte, error) {
		return s.SealPack(trust.Pack{ID: string(id), Scope: id.Scope(), Directory: directory}, now())
	}
}
