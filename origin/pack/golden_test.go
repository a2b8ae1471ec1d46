package pack

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/golden"
)

const (
	goldenMesh   = ID("mesh/2026112022-000102030405060708090a0b0c0d0e0f")
	goldenPublic = ID("public/2025010100-ffeeddccbbaa99887766554433221100")
)

func goldenCID(n byte) content.CID { return content.Sum([]byte{n}) }

// goldenEntries returns entries of a node at some level, with a hole between.
func goldenEntries(packs *packTable) []child {
	mesh, public := packs.number(goldenMesh), packs.number(goldenPublic)
	return []child{
		{goldenCID(1), place{public, 16, 1000, 4096, CodecZstd}, goldenCID(11), place{public, 1016, 90, 100, CodecZstd}},
		{},
		{goldenCID(2), place{mesh, 1 << 20, 4096, 4096, CodecRaw}, goldenCID(12), place{mesh, 1<<20 + 4096, 100, 100, CodecRaw}},
		{goldenCID(3), place{public, 2000, 1, 4096, CodecZstd}, goldenCID(13), place{public, 2001, 100, 100, CodecRaw}},
	}
}

func TestGoldenPages(t *testing.T) {
	var packs packTable
	entries := goldenEntries(&packs)
	for level, name := range map[int]string{1: "leaf.page", 2: "upper.page"} {
		b := encodePage(level, &packs, entries)
		golden.Check(t, name, b)
		p, err := DecodePage(content.Mesh(), level, b)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range entries {
			at, ok := p.Child(i)
			page, okPage := p.ChildPage(i)
			if ok == c.cid.IsHole() || okPage != (ok && level > 1) {
				t.Fatalf("entry %d: %v %v", i, ok, okPage)
			}
			if ok && at != packs.location(c.at) || okPage && page != (Extent{c.pageCID, packs.location(c.page)}) {
				t.Fatalf("entry %d: %v, page %v", i, at, page)
			}
		}
	}
}

func goldenHead() Head {
	entries := goldenEntries(new(packTable))
	var packs packTable
	goldenEntries(&packs)
	return Head{
		Root:     content.Root{Size: 1 << 30, ChunkSize: content.ChunkSizeDefault, Map: entries[0].cid},
		Scope:    content.Mesh(),
		Node:     Extent{entries[0].cid, packs.location(entries[0].at)},
		Page:     Extent{entries[0].pageCID, packs.location(entries[0].page)},
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
		Root: goldenCID(30), Packs: []ID{goldenMesh, goldenPublic}, Page: goldenCID(31),
		Lineage: []content.CID{goldenCID(32), goldenCID(33)}, Chunks: 70000, Stored: 1 << 33,
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

// goldenPack holds one frame of each role, all raw: how well they compress is
// not part of the format.
func goldenPack() sealed {
	w := newWriter(goldenMesh, nil)
	for role := RoleChunk; role <= RoleManifest; role++ {
		b := bytes.Repeat([]byte{byte(role)}, 10*int(role))
		w.add(role, content.Sum(b), len(b), CodecRaw, b)
	}
	return w.seal("")
}

func TestGoldenPack(t *testing.T) {
	for name, s := range map[string]sealed{
		"raw.pack":  goldenPack(),
		"stub.pack": newWriter(goldenMesh, nil).seal(goldenPublic),
	} {
		golden.Check(t, name, s.bytes)
		from := newMemory(t)
		from.set(t, goldenMesh.Key(), s.bytes)
		if err := NewReader(from).VerifyPack(t.Context(), goldenMesh); err != nil {
			t.Fatal(err)
		}
		if d, err := NewReader(from).ReadDirectory(t.Context(), goldenMesh); err != nil || d.Moved != s.footer.moved {
			t.Fatalf("moved to %q, error %v", d.Moved, err)
		}
	}
}

// A whole image written long ago, compressed frames included, is still read.
func TestAnOldImageIsRead(t *testing.T) {
	im := newImage(2*content.MapFanout, 200, 0)
	c := content.NewCodec()
	if golden.Rewrite() {
		to := newMemory(t)
		h, _ := build(t, config(to, im), im)
		head, err := h.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, "image.head", head)
		golden.Check(t, "image.pack", to.object(t, h.Node.Pack.Key()))
	}
	head, err := os.ReadFile(filepath.Join("testdata", "image.head"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := DecodeHead(c, head)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile(filepath.Join("testdata", "image.pack"))
	if err != nil {
		t.Fatal(err)
	}
	from := newMemory(t)
	from.set(t, h.Node.Pack.Key(), packed)
	check(t, from, h, im)
}

func TestGoldenIndex(t *testing.T) {
	s := goldenPack()
	var b bytes.Buffer
	packs := []packEntries{{goldenPublic, []byte{}}, {goldenMesh, s.directory}}
	sources := []string{indexPrefix + string(goldenMesh) + indexSuffix}
	if err := writeIndexTo(&b, packs, sources); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "index", b.Bytes())
	var got []packEntries
	gotSources, err := readIndexFrom(&b, func(p packEntries) error {
		got = append(got, packEntries{p.id, append([]byte{}, p.entries...)})
		return nil
	})
	if err != nil || !reflect.DeepEqual(got, packs) || !reflect.DeepEqual(gotSources, sources) {
		t.Fatalf("%v %v, error %v", got, gotSources, err)
	}
}
