package pack

import (
	"bytes"
	"context"
	"reflect"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
	"github.com/grangemesh/grange/simulations/mem"
)

const (
	goldenMesh   = ID("mesh/2026112022-000102030405060708090a0b0c0d0e0f")
	goldenPublic = ID("public/2025010100-ffeeddccbbaa99887766554433221100")
)

func goldenCID(n byte) content.CID { return content.Sum([]byte{n}) }

// goldenEntries returns entries of a node at some level, with a hole between.
func goldenEntries(packs *Table) []Child {
	mesh, public := packs.Number(goldenMesh), packs.Number(goldenPublic)
	return []Child{
		{goldenCID(1), Place{public, 16, 1000, 4096, CodecZstd}, goldenCID(11), Place{public, 1016, 90, 100, CodecZstd}},
		{},
		{goldenCID(2), Place{mesh, 1 << 20, 4096, 4096, CodecRaw}, goldenCID(12), Place{mesh, 1<<20 + 4096, 100, 100, CodecRaw}},
		{goldenCID(3), Place{public, 2000, 1, 4096, CodecZstd}, goldenCID(13), Place{public, 2001, 100, 100, CodecRaw}},
	}
}

func TestGoldenPages(t *testing.T) {
	var packs Table
	entries := goldenEntries(&packs)
	for level, name := range map[int]string{1: "leaf.page", 2: "upper.page"} {
		b := EncodePage(level, &packs, entries)
		golden.Check(t, name, b)
		p, err := DecodePage(content.Mesh(), level, b)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range entries {
			at, ok := p.Child(i)
			pair, okPage := p.ChildPair(content.Node{}, i)
			if ok == c.CID.IsHole() || okPage != (ok && level > 1) {
				t.Fatalf("entry %d: %v %v", i, ok, okPage)
			}
			if ok && at != packs.Location(c.At) || okPage && pair.Page != (Extent{c.PageCID, packs.Location(c.Page)}) {
				t.Fatalf("entry %d: %v, page %v", i, at, pair.Page)
			}
		}
	}
}

func goldenHead() Head {
	entries := goldenEntries(new(Table))
	var packs Table
	goldenEntries(&packs)
	return Head{
		Root:     content.Root{Size: 1 << 30, ChunkSize: content.ChunkSizeDefault, Map: entries[0].CID},
		Scope:    content.Mesh(),
		Node:     Extent{entries[0].CID, packs.Location(entries[0].At)},
		Page:     Extent{entries[0].PageCID, packs.Location(entries[0].Page)},
		Manifest: Extent{goldenCID(20), Location{Pack: goldenMesh, Offset: 9000, Length: 300, Raw: 300}},
	}
}

func TestGoldenHead(t *testing.T) {
	c, h := content.NewCodec(), goldenHead()
	b, err := h.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "head", b)
	if got, err := DecodeHead(c, b); err != nil || got != h {
		t.Fatalf("%+v, error %v", got, err)
	}
	holes := Head{Root: content.Root{Size: 1 << 30, ChunkSize: 4096}, Scope: content.Farm("a"), Manifest: h.Manifest}
	if b, err = holes.Encode(c); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "head.holes", b)
	if got, err := DecodeHead(c, b); err != nil || got != holes {
		t.Fatalf("%+v, error %v", got, err)
	}
}

func goldenManifest() Manifest {
	return Manifest{
		Root: goldenCID(30), Page: goldenCID(31),
		Packs:   []PackRefs{{ID: goldenMesh, Refs: 70000, Bytes: 1 << 33}, {ID: goldenPublic}},
		Lineage: []content.CID{goldenCID(32), goldenCID(33)},
	}
}

func TestGoldenManifest(t *testing.T) {
	c := content.NewCodec()
	v, err := goldenManifest().Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "manifest", v.Bytes())
	if got, err := DecodeManifest(c, v.Bytes()); err != nil || !reflect.DeepEqual(got, goldenManifest()) {
		t.Fatalf("%+v, error %v", got, err)
	}
}

// goldenSign is no signature: what it looks like is not this package's business.
func goldenSign(id ID, directory content.CID) ([]byte, error) {
	return append([]byte(id), directory[:]...), nil
}

// holding returns a bucket that has b as the golden pack.
func holding(t testing.TB, b []byte) *mem.Bucket {
	t.Helper()
	from := mem.New(t, mem.Config{})
	if _, err := from.Put(t.Context(), goldenMesh.Key(), bucket.Bytes(b), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	return from
}

// goldenPack holds one frame of each role, all raw: how well they compress is
// not part of the format.
func goldenPack(t testing.TB, sign Sign) Sealed {
	w := NewWriter(goldenMesh, nil)
	for role := RoleChunk; role <= RoleManifest; role++ {
		b := bytes.Repeat([]byte{byte(role)}, 10*int(role))
		w.Add(role, content.Sum(b), len(b), CodecRaw, b)
	}
	s, err := w.Seal(sign)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// verifyPack reads each frame that the directory of a pack lists.
func verifyPack(ctx context.Context, from bucket.Bucket, id ID) error {
	r := NewReader(from)
	d, err := r.ReadDirectory(ctx, id)
	if err != nil {
		return err
	}
	for _, e := range d.Entries {
		if e.Raw > FrameSizeMax { // a manifest, which is not read so
			continue
		}
		if _, err := r.ReadFrames(ctx, []Extent{e.Extent}); err != nil {
			return err
		}
	}
	return nil
}

func TestGoldenPack(t *testing.T) {
	for name, s := range map[string]Sealed{
		"raw.pack":    goldenPack(t, nil),
		"signed.pack": goldenPack(t, goldenSign),
		"stub.pack":   NewWriter(goldenMesh, nil).SealStub(goldenPublic),
	} {
		golden.Check(t, name, s.Bytes)
		from := holding(t, s.Bytes)
		if err := verifyPack(t.Context(), from, goldenMesh); err != nil {
			t.Fatal(err)
		}
		if d, err := NewReader(from).ReadDirectory(t.Context(), goldenMesh); err != nil || d.Moved != s.Footer.moved || !bytes.Equal(d.Signature, s.Signature) || !bytes.Equal(d.Encode(), s.Directory) {
			t.Fatalf("%+v, error %v", d, err)
		}
	}
}
