package build

import (
	"bytes"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// listed yields chunks of an image in an order.
func (im image) listed(order []uint64) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		raw := make([]byte, testChunk)
		for _, i := range order {
			clear(raw)
			copy(raw, im.chunks[i])
			if !yield(Change{i, raw}, nil) {
				return
			}
		}
	}
}

// TestALayoutIsOfTheSameRoot: whichever chunks of it are laid out, in whatever order, holes among them, and again on top of
// what was laid out before. They lie at the beginning of a pack of their own, in that order.
func TestALayoutIsOfTheSameRoot(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		total := rapid.Uint64Range(1, 5*content.MapFanout/2).Draw(rt, "chunks")
		im, to := newImage(total, rapid.Uint64Range(1, 700).Draw(rt, "step"), 0), newMemory(t)
		for i := range im.chunks { // some twice
			if i%7 == 3 {
				im.chunks[i] = im.chunks[0]
			}
		}
		cfg := config(to, im)
		cfg.Random = nil
		cfg.Lineage = []content.CID{content.Sum([]byte("before"))}
		first, _ := build(t, cfg, im)
		base := based(t, to, first)
		cfg.Lineage, cfg.Known = nil, to.loadIndex(t, "")
		indexes := len(to.Keys(string(content.KeyIndexes)))
		for range rapid.IntRange(1, 2).Draw(rt, "layouts") {
			order := rapid.SliceOfNDistinct(rapid.Uint64Range(0, total-1), 1, 40, rapid.ID).Draw(rt, "order")
			now, stats, err := Relayout(t.Context(), cfg, base, pack.NewReader(to).ReadNode, im.listed(order))
			if err != nil {
				rt.Fatal(err)
			}
			if now.Head.Root != first.Root || !slices.Equal(now.Manifest.Lineage, base.Manifest.Lineage) {
				rt.Fatalf("%+v was laid out as %+v, lineage %v", first.Root, now.Head.Root, now.Manifest.Lineage)
			}
			check(t, to, now.Head, im)
			counted(t, to, now.Head)
			counted(t, to, base.Head) // whose readers go on
			inOrder(rt, to, now.Head, im, order, stats)
			base = now
		}
		if n := len(to.Keys(string(content.KeyIndexes))); n != indexes {
			rt.Errorf("there are %d index objects, and were %d", n, indexes)
		}
	})
}

// inOrder fails unless the pack that a layout has made begins with those chunks, each once, and goes on with the map.
func inOrder(t *rapid.T, from *memory, head pack.Head, im image, order []uint64, stats Stats) {
	d, err := pack.NewReader(from).ReadDirectory(t.Context(), head.Manifest.Pack)
	if err != nil {
		t.Fatal(err)
	}
	var want []content.CID
	for _, i := range order {
		if id := content.Sum(im.chunks[i]); !content.IsZero(im.chunks[i]) && !slices.Contains(want, id) {
			want = append(want, id)
		}
	}
	bytes := uint64(0)
	for n, e := range d.Entries {
		if n < len(want) {
			bytes += uint64(e.Length)
		}
		if n < len(want) && e.CID != want[n] || (e.Role == pack.RoleChunk) != (n < len(want)) {
			t.Fatalf("frame %d is a %d of %s; %d chunks were laid out", n, e.Role, e.CID, len(want))
		}
	}
	if stats.NewChunks != uint64(len(want)) || stats.NewStoredBytes != bytes || stats.Packs != 1 {
		t.Fatalf("%d chunks of %d bytes: %+v", len(want), bytes, stats)
	}
}

// TestALayoutTakesLess than what was stored first, of what compresses.
func TestALayoutTakesLess(t *testing.T) {
	im, to := newImage(16, 1, 0), newMemory(t)
	words, random := make([][]byte, 500), rand.New(rand.NewPCG(1, 2))
	for i := range words {
		words[i] = chunkOf(uint64(i), 4+2*random.IntN(12))
	}
	for i := range im.chunks {
		var raw []byte
		for len(raw) < testChunk {
			raw = append(raw, words[random.IntN(1+random.IntN(len(words)))]...)
		}
		im.chunks[i] = raw[:testChunk]
	}
	cfg := config(to, im)
	cfg.Random = nil
	head, first := build(t, cfg, im)
	_, laid, err := Relayout(t.Context(), cfg, based(t, to, head), pack.NewReader(to).ReadNode, changing(im.chunks))
	if err != nil || laid.NewChunks != 16 || laid.NewStoredBytes >= first.NewStoredBytes || first.NewStoredBytes >= uint64(im.size) {
		t.Errorf("%d of %d bytes were stored first, and then %d: %v", first.NewStoredBytes, im.size, laid.NewStoredBytes, err)
	}
}

func TestALayoutIsRefused(t *testing.T) {
	im, to := newImage(64, 1, 0), newMemory(t)
	cfg := config(to, im)
	cfg.Random = nil
	head, _ := build(t, cfg, im)
	base, read := based(t, to, head), pack.NewReader(to).ReadNode
	for name, x := range map[string]struct {
		base   Base
		chunks iter.Seq2[Change, error]
		want   error
	}{
		"other bytes":    {base, changing(map[uint64][]byte{3: im.chunks[4]}), content.ErrCorrupt},
		"a hole":         {base, changing(map[uint64][]byte{3: make([]byte, testChunk)}), content.ErrCorrupt},
		"a chunk beyond": {base, changing(map[uint64][]byte{64: im.chunks[3]}), content.ErrInvalid},
		"a chunk twice":  {base, im.listed([]uint64{5, 6, 5}), content.ErrInvalid},
		"a blank disk":   {Base{}, im.listed([]uint64{5}), content.ErrInvalid},
	} {
		if _, _, err := Relayout(t.Context(), cfg, x.base, read, x.chunks); err == nil {
			t.Errorf("%s: laid out, want %v", name, x.want)
		} else {
			wantErr(t, err, x.want)
		}
	}
	counted(t, to, head)
}

// TestALayoutIsReadInFewRequests: of a full disk of 2 GiB, 480 chunks that are all over it. What its reader needs of the map
// is one piece of the pack, behind the chunks.
func TestALayoutIsReadInFewRequests(t *testing.T) {
	const chunks, laid, metaMax = 2 << 30 / content.ChunkSizeDefault, 480, 640 << 10
	to := newMemory(t)
	cfg := Config{Bucket: to, Scope: content.Mesh(), Size: 2 << 30, Signer: to.founder, Now: now}
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	raw := func(i uint64) []byte { return chunkOf(i, content.ChunkSizeDefault) }
	for i := range uint64(chunks) {
		if i%(chunks/512) == 0 {
			err = b.Add(t.Context(), i, raw(i))
		} else {
			err = b.Keep(t.Context(), i, fakeKept(t, i))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	head, _, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	to.forget()
	reader := pack.NewReader(to)
	boot, stats, err := Relayout(t.Context(), cfg, Base{head, b.Manifest()}, reader.ReadNode, func(yield func(Change, error) bool) {
		for _, n := range rand.New(rand.NewPCG(1, 2)).Perm(512)[:laid] {
			if i := uint64(n) * (chunks / 512); !yield(Change{i, raw(i)}, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d reads for the layout, %d bytes sent", to.asked(mem.Get), stats.UploadedBytes)
	d, err := reader.ReadDirectory(t.Context(), boot.Head.Node.Pack)
	if err != nil {
		t.Fatal(err)
	}
	meta, from, end := 0, uint32(0), boot.Head.Page.End()
	for n, e := range d.Entries {
		if (e.Role == pack.RoleChunk) != (n < laid) {
			t.Fatalf("frame %d is a %d", n, e.Role)
		}
		if n == laid {
			from = e.Offset
		}
		if e.Role == pack.RoleNode || e.Role == pack.RolePage {
			meta++
		}
	}
	if t.Logf("%d nodes and pages take %d bytes", meta, end-from); meta != 2*(chunks/content.MapFanout+1) || end-from > metaMax {
		t.Errorf("%d nodes and pages take %d bytes", meta, end-from)
	}
	var frames []pack.Extent
	for _, e := range d.Entries[laid : laid+meta] {
		frames = append(frames, e.Extent)
	}
	to.forget()
	if got, err := reader.ReadFrames(t.Context(), frames); err != nil || to.asked(mem.Get) != 1 || !bytes.Equal(got[0].Bytes()[:3], []byte{0x83, 1, 1}) {
		t.Errorf("%d reads of the map, %v", to.asked(mem.Get), err)
	}
}

// TestImportersReferToWhatIsOlder than a layout, unless they ask for that; and to none that nobody vouches for.
func TestImportersReferToWhatIsOlder(t *testing.T) {
	im, to := newImage(64, 1, 0), newMemory(t)
	cfg := config(to, im)
	cfg.Random = nil
	head, _ := build(t, cfg, im)
	laid := func(signer trust.Signer) Base {
		cfg.Signer, cfg.Now = signer, func() time.Time { return now().Add(time.Hour) }
		out, _, err := Relayout(t.Context(), cfg, based(t, to, head), pack.NewReader(to).ReadNode, im.listed([]uint64{7, 3}))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	signed, unsigned := laid(cfg.Signer), laid(trust.Signer{})
	at, err := Find(t.Context(), pack.NewReader(to).ReadNode, signed.Head, slices.Values([]uint64{63, 7, 3, 64, 1 << 40}))
	if err != nil || len(at) != 3 || at[63].CID != content.Sum(im.chunks[63]) || at[7].Pack != signed.Head.Node.Pack || at[7].End() != at[3].Offset {
		t.Errorf("%v, %v", at, err)
	}
	to.at = now().Add(time.Hour)
	for name, x := range map[string]struct{ first, want pack.ID }{
		"unasked": {"", head.Node.Pack}, "asked": {signed.Head.Node.Pack, signed.Head.Node.Pack}, "unsigned": {unsigned.Head.Node.Pack, head.Node.Pack},
	} {
		known, err := index.Load(t.Context(), index.Config{
			Bucket: to, Scopes: []content.Scope{content.Mesh()}, First: map[pack.ID]bool{x.first: true}, Verifier: to.verifier, Now: cfg.Now,
		})
		if err != nil {
			t.Fatal(err)
		}
		if at, ok := known.Locate(t.Context(), content.Sum(im.chunks[7])); !ok || at.Pack != x.want {
			t.Errorf("%s: chunk 7 is in %s, want %s", name, at.Pack, x.want)
		}
	}
}
