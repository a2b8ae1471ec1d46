package content

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/simulations/golden"
)

func TestCIDForms(t *testing.T) {
	id := Sum([]byte("grange"))
	// BLAKE3-256, as b3sum prints it; the text as any IPFS tool does.
	const text = "bafkr4i"
	if s := id.String(); !strings.HasPrefix(s, text) || len(s) != 59 {
		t.Fatalf("text form %s", s)
	}
	if empty := Sum(nil); hex.EncodeToString(empty[:]) != "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262" {
		t.Fatalf("empty bytes hash to %x", empty)
	}
	if got := must(ParseCID(id.String()))(t); got != id {
		t.Fatalf("%s came back as %s", id, got)
	}
	if id.CID().String() != id.String() || !bytes.Equal(id.CID().Bytes(), append([]byte(cidPrefix), id[:]...)) {
		t.Fatal("go-cid has another form")
	}
	for _, other := range []string{
		"", "hole", id.String()[1:], id.String() + "a",
		"QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",              // version 0
		"bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", // dag-pb, SHA-256
		"bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", // raw, SHA-256
	} {
		_, err := ParseCID(other)
		wantErr(t, err, ErrInvalid)
	}
	var hole CID
	if !hole.IsHole() || hole.String() != "hole" || id.IsHole() {
		t.Fatal("the zero CID is the hole")
	}
	for _, want := range []CID{id, hole} {
		var got CID
		if err := got.UnmarshalText(must(want.MarshalText())(t)); err != nil || got != want {
			t.Fatalf("text: %s came back as %s, error %v", want, got, err)
		}
		if err := cbor.Unmarshal(must(cbor.Marshal(want))(t), &got); err != nil || got != want {
			t.Fatalf("CBOR: %s came back as %s, error %v", want, got, err)
		}
	}
}

func TestOnlyTheRightBytesAreVerified(t *testing.T) {
	data := []byte("some bytes")
	sealed := Seal(data)
	v := must(Verify(sealed.CID(), data))(t)
	if v.CID() != sealed.CID() || !bytes.Equal(v.Bytes(), data) {
		t.Fatalf("verified %s", v.CID())
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1
		_, err := Verify(sealed.CID(), bad)
		wantErr(t, err, ErrCorrupt)
	}
	_, err := Verify(CID{}, data)
	wantErr(t, err, ErrCorrupt)
}

func goldenRoot() Root {
	return Root{Size: 2 << 30, ChunkSize: ChunkSizeDefault, Map: Sum([]byte("map"))}
}

func TestGoldenRoot(t *testing.T) {
	c := NewCodec()
	for name, r := range map[string]Root{
		"root":       goldenRoot(),
		"root.holes": {Size: 512, ChunkSize: ChunkSizeMin},
		"root.tree":  {Kind: RootTree, Size: 5_000_001, ChunkSize: ChunkSizeDefault, Count: 1025, Map: Sum([]byte("map"))},
	} {
		v := must(r.Encode(c))(t)
		golden.Check(t, name, v.Bytes())
		if got := must(DecodeRoot(c, v.Bytes()))(t); got != r {
			t.Fatalf("%s: %+v", name, got)
		}
	}
}

// TestShapes: a disk and a tree of as many chunks are the same to who moves them, but for
// the lengths of chunks.
func TestShapes(t *testing.T) {
	disk := Root{Size: 1025*4096 - 512, ChunkSize: 4096}
	tree := Root{Kind: RootTree, Size: 5000, ChunkSize: 4096, Count: 1025}
	of, other := disk.Shape(), tree.Shape()
	if of.Chunks != other.Chunks || of.Depth() != 2 || other.Depth() != 2 || of.Leaves() != 2 || of.ChunkMax != other.ChunkMax {
		t.Errorf("shapes %+v and %+v", of, other)
	}
	for n, fits := range map[int][2]bool{0: {}, 1: {false, true}, 4095: {false, true}, 4096: {true, true}, 4097: {}} {
		if got := [2]bool{of.CheckChunk(n) == nil, other.CheckChunk(n) == nil}; got != fits {
			t.Errorf("chunk of %d bytes: %v, want %v", n, got, fits)
		}
	}
	last := make([]byte, 4096)
	last[4095] = 1
	wantErr(t, disk.CheckChunk(1024, last), ErrInvalid) // it lies beyond the end
	if err := errors.Join(disk.CheckChunk(1023, last), tree.CheckChunk(1024, last)); err != nil {
		t.Error(err)
	}
}

func TestRootsOutsideTheLimits(t *testing.T) {
	c := NewCodec()
	for _, r := range []Root{
		{}, {Size: 511, ChunkSize: 4096}, {Size: SizeMax + 512, ChunkSize: 4096}, {Size: -512, ChunkSize: 4096},
		{Size: 512, ChunkSize: 2048}, {Size: 512, ChunkSize: 5000}, {Size: 512, ChunkSize: 2 << 20},
		{Size: 512, ChunkSize: 4096, Count: 1}, {Kind: "dir", Size: 512, ChunkSize: 4096, Count: 1},
		{Kind: RootTree, Size: 512, ChunkSize: 4096}, {Kind: RootTree, Size: 4097, ChunkSize: 4096, Count: 1},
		{Kind: RootTree, Size: 2, ChunkSize: 4096, Count: 3}, {Kind: RootTree, Size: SizeMax, ChunkSize: 4096, Count: ChunksMax + 1},
	} {
		_, err := r.Encode(c)
		wantErr(t, err, ErrInvalid)
	}
	for _, w := range []rootWire{
		{"grange-root/2", 1, Root{Size: 512, ChunkSize: 4096}}, {rootMagic, 2, Root{Size: 512, ChunkSize: 4096}}, {rootMagic, 1, Root{Size: 513, ChunkSize: 4096}},
	} {
		_, err := DecodeRoot(c, must(c.Marshal(w))(t))
		wantErr(t, err, ErrCorrupt)
	}
}

// A root with a field more would be the same disk under another name.
func TestARootHasOneEncoding(t *testing.T) {
	c := NewCodec()
	type extended struct {
		rootWire
		More int `cbor:"more"`
	}
	r := goldenRoot()
	w := rootWire{rootMagic, r.Shape().Depth(), r}
	_, err := DecodeRoot(c, must(c.Marshal(extended{w, 1}))(t))
	wantErr(t, err, ErrCorrupt)
	_, err = DecodeRoot(c, must(cbor.Marshal(w))(t)) // keys out of order
	wantErr(t, err, ErrCorrupt)
}

func TestDepthBySize(t *testing.T) {
	for _, c := range []struct {
		size  int64
		chunk int
		depth int
	}{
		{512, 4096, 1}, {1024 * 4096, 4096, 1}, {1024*4096 + 512, 4096, 2}, {2 << 30, 128 << 10, 2},
		{128 << 30, 128 << 10, 2}, {SizeMax, 128 << 10, 3}, {SizeMax, 4096, LevelMax}, {SizeMax, 1 << 20, 3},
	} {
		r := Root{Size: c.size, ChunkSize: c.chunk}
		if got := r.Shape().Depth(); got != c.depth {
			t.Errorf("%d bytes in chunks of %d: depth %d, want %d", c.size, c.chunk, got, c.depth)
		}
	}
}

func TestPlaces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Root{Size: rapid.Int64Range(1, SizeMax/512).Draw(t, "sectors") * 512, ChunkSize: 4096 << rapid.IntRange(0, 8).Draw(t, "chunk")}.Shape()
		p := Chunk(rapid.Uint64Range(0, r.Chunks-1).Draw(t, "index"))
		for p.Level < r.Depth() {
			parent, i := p.Parent()
			if !r.Contains(p) || !r.Contains(parent) || parent.Child(i) != p {
				t.Fatalf("%s under %+v: parent %s, entry %d", p, r, parent, i)
			}
			p = parent
		}
		if p.Index != 0 {
			t.Fatalf("the top is %s", p)
		}
		for _, outside := range []Pos{Chunk(r.Chunks), {-1, 0}, {r.Depth(), 1}, {r.Depth() + 1, 0}} {
			if r.Contains(outside) {
				t.Fatalf("%+v contains %s", r, outside)
			}
		}
	})
}

func goldenNode() Node {
	return Node{Level: 2, Entries: []CID{Sum([]byte("a")), {}, {}, Sum([]byte("b")), {}}}
}

func TestGoldenNode(t *testing.T) {
	c := NewCodec()
	v := goldenNode().Encode()
	golden.Check(t, "node", v.Bytes())
	got := must(DecodeNode(c, 2, v.Bytes()))(t)
	if !slices.Equal(got.Entries, goldenNode().Entries[:4]) || got.Level != 2 {
		t.Fatalf("%+v", got)
	}
	if got.Entry(3) != Sum([]byte("b")) || !got.Entry(1).IsHole() || !got.Entry(1000).IsHole() {
		t.Fatal("entries are not where they were")
	}
	_, err := DecodeNode(c, 1, v.Bytes())
	wantErr(t, err, ErrCorrupt)
	trailing := must(c.Marshal([]any{nodeVersion, 2, []any{goldenNode().Entries[0], nil}}))(t)
	_, err = DecodeNode(c, 2, trailing)
	wantErr(t, err, ErrCorrupt)
	later := must(c.Marshal([]any{nodeVersion, 2, []any{[]any{goldenNode().Entries[0], 1, 1}}}))(t)
	_, err = DecodeNode(c, 2, later)
	wantErr(t, err, ErrCorrupt)
}

func TestNodesComeBack(t *testing.T) {
	c := NewCodec()
	rapid.Check(t, func(t *rapid.T) {
		n := Node{Level: rapid.IntRange(1, LevelMax).Draw(t, "level"), Entries: make([]CID, rapid.IntRange(1, MapFanout).Draw(t, "entries"))}
		for _, i := range rapid.SliceOf(rapid.IntRange(0, len(n.Entries)-1)).Draw(t, "data") {
			n.Entries[i] = Sum([]byte{byte(i), byte(i >> 8)})
		}
		n.Entries[len(n.Entries)-1] = Sum([]byte("last"))
		v := n.Encode()
		got, err := DecodeNode(c, n.Level, v.Bytes())
		if err != nil || !slices.Equal(got.Entries, n.Entries) || len(v.Bytes()) > NodeSizeMax {
			t.Fatalf("%d entries in %d bytes: %v", len(n.Entries), len(v.Bytes()), err)
		}
		n.Entries = append(n.Entries, make([]CID, MapFanout-len(n.Entries))...)
		if n.Encode().CID() != v.CID() {
			t.Fatal("trailing holes change the name")
		}
	})
}

func TestBitmaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		index := rapid.OneOf(rapid.Uint64Range(0, 3000), rapid.Uint64Range(0, 1<<32-1))
		model := make(map[uint64]bool)
		var b Bitmap
		for _, i := range rapid.SliceOf(index).Draw(t, "add") {
			b.Add(i)
			model[i] = true
		}
		for _, i := range rapid.SliceOf(index).Draw(t, "remove") {
			b.Remove(i)
			delete(model, i)
		}
		same := func(b *Bitmap) {
			last := int64(-1)
			b.All(func(i uint64) bool {
				if int64(i) <= last || !model[i] || !b.Has(i) {
					t.Fatalf("index %d after %d", i, last)
				}
				last = int64(i)
				return true
			})
			if b.Len() != uint64(len(model)) || b.Has(1<<32) {
				t.Fatalf("%d indexes, want %d", b.Len(), len(model))
			}
		}
		same(&b)
		encoded, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeBitmap(encoded)
		if err != nil {
			t.Fatal(err)
		}
		same(got)
		copied := got.Clone()
		got.Union(&b)
		same(got)
		got.Add(1<<32 - 1)
		got.Add(7)
		same(copied)
	})
}

func TestABitmapOfTheLargestImageFits(t *testing.T) {
	var b Bitmap
	// The worst case of its form: every other bit of a container, so no runs.
	for i := uint64(0); i < 1<<16; i += 2 {
		b.Add(i)
	}
	encoded := must(b.Encode())(t)
	containers := SizeMax / ChunkSizeDefault >> 16
	if size := len(encoded) * containers; size > BitmapSizeMax {
		t.Fatalf("%d bytes, the limit is %d", size, BitmapSizeMax)
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "0", "debian-12.5_x86", strings.Repeat("x", NameMax)} {
		if err := CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-a", "_a", "a/b", "a b", "ä", "a\x00", "a@1", strings.Repeat("x", NameMax+1)} {
		wantErr(t, CheckName(bad), ErrInvalid)
	}
}

// TestReferences: images have OCI references for names, and volumes none.
func TestReferences(t *testing.T) {
	long := strings.Repeat("x", NameMax) + "/" + strings.Repeat("x", SegmentMax-NameMax-len("%2F"))
	for _, good := range []string{"debian", "debian:12", "library/debian", "ghcr.io/org/debian:12-slim", long} {
		if err := errors.Join(KindImage.CheckName(good), KindTag.CheckName(good), KindTree.CheckName(good)); err != nil {
			t.Error(err)
		}
		if err := KindVolume.CheckName(good); (err == nil) != (good == "debian") {
			t.Errorf("a volume that is called %s: %v", good, err)
		}
		segment := Segment(good)
		if name := must(NameOf(segment))(t); name != good || strings.ContainsAny(segment, "/:") || len(segment) > SegmentMax {
			t.Errorf("%s is %s in a path, and that is %s", good, segment, name)
		}
	}
	for _, bad := range []string{"", "/a", "a/", "a//b", "a/../b", "a/.b", ":a", "a:", "a:b:c", "a:b/c", "a@sha256", "a b", "a%2Fb", long + "x"} {
		wantErr(t, KindImage.CheckName(bad), ErrInvalid)
	}
	for _, bad := range []string{"a/b", "a%2fb", "a%", "%61", ".tmp-%"} {
		_, err := NameOf(bad)
		wantErr(t, err, ErrInvalid)
	}
	for text, want := range map[string]string{"debian": " debian", "debian:12": " debian:12", "image:debian:12": "image debian:12", "volume:web": "volume web", "volume:a/b": " volume:a/b"} {
		if kind, name := CutKind(text); string(kind)+" "+name != want {
			t.Errorf("%s is %q %q", text, kind, name)
		}
	}
}

func TestRefs(t *testing.T) {
	for _, s := range []string{"image:debian", "image:ghcr.io/org/debian:12", "volume:web-1", "volume:web-1?at=folded", "snapshot:web-1@12", "snapshot:web-1@e7-orphan"} {
		ref := must(ParseRef(s))(t)
		if ref.String() != s {
			t.Errorf("%s came back as %s", s, ref)
		}
		var viaText, viaCBOR Ref
		if err := viaText.UnmarshalText(must(ref.MarshalText())(t)); err != nil || viaText != ref {
			t.Errorf("text: %+v, error %v", viaText, err)
		}
		if err := cbor.Unmarshal(must(cbor.Marshal(ref))(t), &viaCBOR); err != nil || viaCBOR != ref {
			t.Errorf("CBOR: %+v, error %v", viaCBOR, err)
		}
	}
	for _, s := range []string{
		"", "debian", "image:", "image:a//b", "volume:a/b", "image:debian?at=folded", "tag:a", "volume:?at=folded", "/dev/sda",
		"snapshot:a", "snapshot:a@", "snapshot:a@0", "snapshot:a@01", "snapshot:a@-1", "snapshot:a@+1", "snapshot:@1", "snapshot:a@1@2",
		"snapshot:a@e1", "snapshot:a@1-orphan", "snapshot:a@e0-orphan", "snapshot:a@e01-orphan", "snapshot:a@e-orphan", "snapshot:a@ee1-orphan",
	} {
		_, err := ParseRef(s)
		wantErr(t, err, ErrInvalid)
	}
}

func TestScopes(t *testing.T) {
	scopes := []Scope{Public(), Mesh(), Farm("a"), Farm("b")}
	covers := [][]bool{
		{true, true, true, true},
		{false, true, true, true},
		{false, false, true, false},
		{false, false, false, true},
	}
	for i, s := range scopes {
		if got := must(ParseScope(s.String()))(t); got != s {
			t.Errorf("%s came back as %s", s, got)
		}
		var got Scope
		if err := cbor.Unmarshal(must(cbor.Marshal(s))(t), &got); err != nil || got != s {
			t.Errorf("CBOR: %s came back as %s, error %v", s, got, err)
		}
		for j, inner := range scopes {
			if s.Covers(inner) != covers[i][j] {
				t.Errorf("%s covers %s: %v", s, inner, s.Covers(inner))
			}
		}
		if s.Covers(Scope{}) || (Scope{}).Covers(s) {
			t.Errorf("%s and no scope", s)
		}
	}
	for _, s := range []string{"", "farm", "farm/", "farm/a/b", "Public", "farm/..", "mesh/"} {
		_, err := ParseScope(s)
		wantErr(t, err, ErrInvalid)
	}
}

func TestTheCodecIsStrict(t *testing.T) {
	c := NewCodec()
	for name, b := range map[string]string{
		"nothing":             "",
		"bytes behind":        "\x01\x01",
		"a list without end":  "\x9f\x01\xff",
		"a key twice":         "\xa2\x61a\x01\x61a\x02",
		"a text of bad UTF-8": "\x61\xff",
		"a list that is huge": "\x9a\xff\xff\xff\xff",
		"cut":                 "\x82\x01",
		"nested without end":  strings.Repeat("\x81", 100) + "\x01",
	} {
		var v any
		if err := c.Unmarshal([]byte(b), &v); err == nil {
			t.Errorf("%s was decoded as %v", name, v)
		} else {
			wantErr(t, err, ErrCorrupt)
		}
	}
}

func TestWhatIsWrittenOnce(t *testing.T) {
	for key, want := range map[string]bool{
		KeyMesh: false, "": false, "packs": false, "records/image/packs/": false, string(KeyRecords) + "image/a": false, string(KeyProbes) + "a": false,
		KeyPacks.Of(Farm("a")) + "x.pack": true, KeyIndexes.Of(Mesh()) + "x.suspect": true, string(KeyJournals) + "v/1-1": true,
	} {
		if got := IsImmutableKey(key); got != want {
			t.Errorf("%q: %v, want %v", key, got, want)
		}
	}
}
