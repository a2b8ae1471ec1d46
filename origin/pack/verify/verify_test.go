package verify

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	chunkSize = content.ChunkSizeMin
	chunks    = content.MapFanout + 200 // two leaves under a top node
)

// known says of chunks that they lie somewhere, unchecked: what an importer does
// that believes a poisoned index.
type known map[content.CID]pack.Location

func (k known) Locate(_ context.Context, id content.CID) (pack.Location, bool) {
	at, ok := k[id]
	return at, ok
}

func chunk(seed byte, i int) []byte {
	b := make([]byte, chunkSize)
	_, _ = rand.NewChaCha8([32]byte{seed, byte(i), byte(i >> 8)}).Read(b[:chunkSize/2])
	return b
}

// store builds an image of chunks that depend on seed.
func store(t *testing.T, to bucket.Bucket, seed byte, k build.Known) pack.Head {
	t.Helper()
	b, err := build.New(t.Context(), build.Config{
		Bucket: to, Scope: content.Mesh(), Size: chunks * chunkSize, ChunkSize: chunkSize, PackSize: 512 << 10, Known: k,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	for i := range chunks {
		if err := b.Add(t.Context(), uint64(i), chunk(seed, i)); err != nil {
			t.Fatal(err)
		}
	}
	head, _, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head
}

// leaf reads a leaf of the map.
func leaf(t *testing.T, from bucket.Bucket, h pack.Head, n int) pack.MapNode {
	t.Helper()
	r := pack.NewReader(from)
	top, err := r.ReadNode(t.Context(), h.Scope, 2, h.Top())
	if err != nil {
		t.Fatal(err)
	}
	pair, ok := top.Page.ChildPair(top.Node, n)
	if !ok {
		t.Fatalf("no leaf %d", n)
	}
	out, err := r.ReadNode(t.Context(), h.Scope, 1, pair)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// extents returns where the chunks lie.
func extents(t *testing.T, from bucket.Bucket, h pack.Head) (out []pack.Extent) {
	t.Helper()
	for n := range 2 {
		l := leaf(t, from, h, n)
		for i := range l.Page.Len() {
			at, ok := l.Page.Child(i)
			if !ok {
				t.Fatalf("chunk %d of leaf %d is a hole", i, n)
			}
			out = append(out, pack.Extent{CID: l.Node.Entry(i), Location: at})
		}
	}
	return out
}

// extent returns where one chunk lies.
func extent(t *testing.T, from bucket.Bucket, h pack.Head, i int) pack.Extent {
	t.Helper()
	return extents(t, from, h)[i]
}

func replace(t *testing.T, in *mem.Bucket, key string, b []byte) {
	t.Helper()
	err := in.Delete(t.Context(), key)
	if err == nil {
		_, err = in.Put(t.Context(), key, bucket.Bytes(b), bucket.IfAbsent())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func object(t *testing.T, from bucket.Bucket, key string) []byte {
	t.Helper()
	b, _, err := bucket.ReadAll(t.Context(), from, key, pack.SizeMax)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAllIsWell(t *testing.T) {
	in := mem.New(t, mem.Config{})
	h := store(t, in, 1, nil)
	before, last := in.Count(mem.Get), Report{}
	r, err := Config{Reader: pack.NewReader(in), Progress: func(r Report) { last = r }}.Image(t.Context(), h)
	if err != nil || r.Err() != nil || r.Chunks != chunks || r.Nodes != 3 || last.Chunks != chunks || r.StoredBytes == 0 {
		t.Fatalf("%+v, last told %+v, error %v", r, last, err)
	}
	// Runs, not chunks: 1,224 chunks of some 2 KiB in packs of half a run.
	if n := in.Count(mem.Get) - before; n > 20 {
		t.Fatalf("%d reads", n)
	}
	b, err := build.New(t.Context(), build.Config{Bucket: in, Scope: content.Mesh(), Size: chunkSize})
	if err != nil {
		t.Fatal(err)
	}
	holes, _, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r, err := (Config{Reader: pack.NewReader(in)}).Image(t.Context(), holes); err != nil || r.Err() != nil || r.Chunks != 0 {
		t.Fatalf("all holes: %+v, error %v", r, err)
	}
}

// otherManifest gives a head a manifest that differs from its own.
func otherManifest(change func(*pack.Manifest)) func(*testing.T, *mem.Bucket, *pack.Head) {
	return func(t *testing.T, in *mem.Bucket, h *pack.Head) {
		m, err := pack.NewReader(in).ReadManifest(t.Context(), *h)
		if err != nil {
			t.Fatal(err)
		}
		change(&m)
		v, err := m.Encode(content.NewCodec())
		if err != nil {
			t.Fatal(err)
		}
		id, err := pack.ParseID("mesh/2025010100-ffeeddccbbaa99887766554433221100")
		if err != nil {
			t.Fatal(err)
		}
		w := pack.NewWriter(id, nil)
		at := w.Add(pack.RoleManifest, v.CID(), len(v.Bytes()), pack.CodecRaw, v.Bytes())
		s, err := w.Seal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Put(t.Context(), id.Key(), bucket.Bytes(s.Bytes), bucket.IfAbsent()); err != nil {
			t.Fatal(err)
		}
		h.Manifest = pack.Extent{CID: v.CID(), Location: at}
	}
}

// Whatever is wrong with an image is found, counted, and named.
func TestEachDamageIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		damage       func(t *testing.T, in *mem.Bucket, h *pack.Head)
		first        string
		bad, missing bool
	}{
		"a flipped byte": {func(t *testing.T, in *mem.Bucket, h *pack.Head) {
			e := extent(t, in, *h, 17)
			in.Corrupt(e.Pack.Key(), func(b []byte) { b[e.Offset+e.Length/2] ^= 1 })
		}, "chunk 17 ", true, false},
		"a missing pack": {func(t *testing.T, in *mem.Bucket, h *pack.Head) {
			e := extent(t, in, *h, 0)
			in.Delete(t.Context(), e.Pack.Key())
		}, "chunk 0 ", false, true},
		"a pack replaced by another that is valid": {func(t *testing.T, in *mem.Bucket, h *pack.Head) {
			other := store(t, in, 2, nil)
			replace(t, in, extent(t, in, *h, 0).Pack.Key(), object(t, in, extent(t, in, other, 0).Pack.Key()))
		}, "chunk 0 ", true, false},
		"chunks that never existed": {func(t *testing.T, in *mem.Bucket, h *pack.Head) {
			e, poison := extent(t, in, *h, 5), known{}
			for i := range chunks {
				at := e.Location
				at.Raw, at.Codec, at.Length = chunkSize, pack.CodecZstd, 100
				poison[content.Sum(chunk(3, i))] = at
			}
			*h = store(t, in, 3, poison)
		}, "chunk 0 ", true, false},
		"a locator page that points elsewhere": {func(t *testing.T, in *mem.Bucket, h *pack.Head) {
			all, other := extents(t, in, *h), known{}
			for _, e := range all {
				other[e.CID] = e.Location
			}
			other[all[3].CID] = all[4].Location
			*h = store(t, in, 1, other)
		}, "chunk 3 ", true, false},
		"a map node that is damaged": {func(t *testing.T, in *mem.Bucket, h *pack.Head) {
			in.Corrupt(h.Node.Pack.Key(), func(b []byte) { b[h.Node.Offset+h.Node.Length/2] ^= 1 })
		}, "map node 2/0 ", true, false},
		"a manifest that is damaged": {func(t *testing.T, in *mem.Bucket, h *pack.Head) {
			in.Corrupt(h.Manifest.Pack.Key(), func(b []byte) { b[h.Manifest.Offset+h.Manifest.Length/2] ^= 1 })
		}, "manifest ", true, false},
		"the manifest of another image": {func(t *testing.T, in *mem.Bucket, h *pack.Head) {
			h.Manifest = store(t, in, 2, nil).Manifest
		}, "manifest ", true, false},
		"a manifest that does not name a pack":  {otherManifest(func(m *pack.Manifest) { m.Packs = m.Packs[1:] }), "manifest ", true, false},
		"a manifest that counts fewer places":   {otherManifest(func(m *pack.Manifest) { m.Packs[0].Refs-- }), "manifest ", true, false},
		"a manifest that counts too many bytes": {otherManifest(func(m *pack.Manifest) { m.Packs[0].Bytes++ }), "manifest ", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			in := mem.New(t, mem.Config{MayReadDeleted: true})
			h := store(t, in, 1, nil)
			c.damage(t, in, &h)
			r, err := Config{Reader: pack.NewReader(in)}.Image(t.Context(), h)
			if err != nil {
				t.Fatal(err)
			}
			if c.bad != (r.Bad > 0) || c.missing != (r.Missing > 0) || r.First == nil {
				t.Fatalf("%+v", r)
			}
			found := r.Err()
			if c.bad && !errors.Is(found, content.ErrCorrupt) || c.missing && !errors.Is(found, content.ErrNotFound) {
				t.Fatalf("error %v", found)
			}
			if !strings.HasPrefix(r.First.Error(), c.first) || !strings.Contains(r.First.Error(), r.First.Extent.Pack.Key()) {
				t.Fatalf("the first is %q, want %q", r.First.Error(), c.first)
			}
		})
	}
}

// All of what is damaged is counted, not the first alone.
func TestAllDamageIsCounted(t *testing.T) {
	in := mem.New(t, mem.Config{MayReadDeleted: true})
	h := store(t, in, 1, nil)
	all, want := extents(t, in, h), uint64(0)
	gone, flipped := all[0].Pack, all[chunks-1]
	for _, e := range all {
		if e.Pack == gone {
			want++
		}
	}
	in.Corrupt(flipped.Pack.Key(), func(b []byte) { b[flipped.Offset] ^= 0xff })
	if err := in.Delete(t.Context(), gone.Key()); err != nil {
		t.Fatal(err)
	}
	r, err := Config{Reader: pack.NewReader(in)}.Image(t.Context(), h)
	if err != nil || r.Missing != want || r.Bad != 1 || r.Chunks != chunks-want-1 {
		t.Fatalf("%+v, want %d missing and one bad; error %v", r, want, err)
	}
}

// A pack that was rewritten is read where its frames are now, as readers do.
func TestMovedPacksAreFollowed(t *testing.T) {
	in := mem.New(t, mem.Config{})
	h := store(t, in, 1, nil)
	for _, key := range in.Keys("packs/") {
		id, err := pack.ParseKey(key)
		if err != nil {
			t.Fatal(err)
		}
		to := id[:len(id)-4] + "beef"
		b := object(t, in, key)
		d, err := pack.NewReader(in).ReadDirectory(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		w := pack.NewWriter(to, nil)
		for _, e := range d.Entries {
			w.Add(e.Role, e.CID, int(e.Raw), e.Codec, b[e.Offset:e.End()])
		}
		s, err := w.Seal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Put(t.Context(), to.Key(), bucket.Bytes(s.Bytes), bucket.IfAbsent()); err != nil {
			t.Fatal(err)
		}
		replace(t, in, key, pack.NewWriter(id, nil).SealStub(to).Bytes)
	}
	if r, err := (Config{Reader: pack.NewReader(in)}).Image(t.Context(), h); err != nil || r.Err() != nil || r.Chunks != chunks {
		t.Fatalf("%+v, error %v", r, err)
	}
}

// A store that does not answer says nothing of the image, and neither does a
// caller who has gone.
func TestDoubtIsNoDamage(t *testing.T) {
	calls := 0
	in := mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
		if c.Op == mem.Get && c.Range.Length > 100<<10 {
			calls++
			return mem.Fault{Err: content.ErrUnavailable}
		}
		return mem.Fault{}
	}})
	h := store(t, in, 1, nil)
	if r, err := (Config{Reader: pack.NewReader(in)}).Image(t.Context(), h); !errors.Is(err, content.ErrUnavailable) || r.First != nil || calls == 0 {
		t.Fatalf("%+v, error %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := Config{Reader: pack.NewReader(in), Progress: func(Report) { cancel() }}.Image(ctx, h)
	if !errors.Is(err, context.Canceled) || r.First != nil {
		t.Fatalf("%+v, error %v", r, err)
	}
}

func TestRunsHoldWhatOneReadTakes(t *testing.T) {
	at := func(n int, offset, length, raw uint32) frame {
		e := pack.Extent{CID: content.Sum([]byte{byte(n)}), Location: pack.Location{Pack: "a", Offset: offset, Length: length, Raw: raw}}
		return frame{content.Pos{Index: uint64(n)}, e, e}
	}
	frames := []frame{at(0, 2<<20, 10, 4096), at(1, 16, 10, 4096), at(2, 1<<20-1, 4096, 4096), at(1, 16, 10, 4096)}
	for i := range 20 {
		frames = append(frames, at(10+i, 3<<20+uint32(i)*10, 10, 1<<20))
	}
	out := runs(frames)
	var sizes []byte
	for _, r := range out {
		sizes = append(sizes, byte(len(r)))
	}
	if !bytes.Equal(sizes, []byte{2, 1, 8, 8, 4}) {
		t.Fatalf("reads of %d frames", sizes)
	}
}
