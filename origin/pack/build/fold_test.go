package build

import (
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/verify"
	"github.com/grangemesh/grange/simulations/buckettest"
	"github.com/grangemesh/grange/simulations/mem"
)

// changing yields chunks in no order.
func changing(chunks map[uint64][]byte) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for i, raw := range chunks {
			if !yield(Change{i, raw}, nil) {
				return
			}
		}
	}
}

// based reads a root at its origin.
func based(t testing.TB, from bucket.Bucket, head pack.Head) Base {
	t.Helper()
	base, err := ReadBase(t.Context(), pack.NewReader(from), head)
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// changed returns im with chunks in place of others; nil ones become holes.
func (im image) changed(size int64, chunks map[uint64][]byte) image {
	out := image{size, maps.Clone(im.chunks)}
	for i, b := range chunks {
		if out.chunks[i] = b; content.IsZero(b) {
			delete(out.chunks, i)
		}
	}
	return out
}

// counted fails unless an image is whole, and its manifest counts what its map refers to.
func counted(t testing.TB, from *memory, h pack.Head) {
	t.Helper()
	report, err := verify.Config{Reader: pack.NewReader(from)}.Image(t.Context(), h)
	if err = errors.Join(err, report.Err()); err != nil {
		t.Fatal(err)
	}
}

// fakeKept says where a chunk of a large image would lie, in one of a few packs.
func fakeKept(t testing.TB, index uint64) pack.Extent {
	t.Helper()
	var name [8]byte
	binary.BigEndian.PutUint64(name[:], index)
	packs := [4]pack.ID{
		"mesh/2026010100-00000000000000000000000000000000", "mesh/2026010100-11111111111111111111111111111111",
		"mesh/2026010100-22222222222222222222222222222222", "mesh/2026010100-33333333333333333333333333333333",
	}
	return pack.Extent{CID: content.Sum(name[:]), Location: pack.Location{
		Pack: packs[index/1024%4], Offset: uint32(16 + index%1024*50_000), Length: 50_000, Raw: content.ChunkSizeDefault, Codec: pack.CodecZstd,
	}}
}

// counting counts what is asked of a bucket, and the bytes that it is given.
type counting struct {
	bucket.Bucket
	gets, puts, written atomic.Int64
}

func (c *counting) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	c.gets.Add(1)
	return c.Bucket.Get(ctx, key, r)
}

func (c *counting) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	c.puts.Add(1)
	c.written.Add(body.Size())
	return c.Bucket.Put(ctx, key, body, cond)
}

// TestAFoldReadsAndWritesWhatChanges: of a root of 100 GiB in a few packs, ten chunks
// that lie far apart change, twice.
func TestAFoldReadsAndWritesWhatChanges(t *testing.T) {
	t.Run("memory", func(t *testing.T) { foldsWhatChanges(t, newMemory(t)) })
	t.Run("S3", func(t *testing.T) {
		server := buckettest.StartS3(t)
		server.Setenv(t)
		l, err := s3.ParseURL(server.URL("folds"))
		if err != nil {
			t.Fatal(err)
		}
		store, err := s3.Open(t.Context(), s3.Config{Location: l})
		if err != nil {
			t.Fatal(err)
		}
		foldsWhatChanges(t, store)
	})
}

func foldsWhatChanges(t *testing.T, store bucket.Bucket) {
	const size, changes = 100 << 30, 10
	const readsMax, writtenMax, memoryMax = 30, 2 << 20, 96 << 20
	to := &counting{Bucket: store}
	cfg := Config{Bucket: to, Scope: content.Mesh(), Size: size, Signer: newMesh(t, now()).founder, Now: now}
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	chunks := uint64(size / content.ChunkSizeDefault)
	for i := range chunks {
		if i/content.MapFanout%(chunks/content.MapFanout/changes) > 0 && i%16 > 0 { // only the nodes that change are full
			continue
		}
		if err := b.Keep(t.Context(), i, fakeKept(t, i)); err != nil {
			t.Fatal(err)
		}
	}
	head, _, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	was, reader := b.Manifest(), pack.NewReader(to)
	for round := range uint64(2) {
		order := make([]Change, changes)
		for n := range uint64(changes) {
			i := (n*7 + 3) % changes
			raw := make([]byte, content.ChunkSizeDefault) // that does not compress
			_, _ = rand.NewChaCha8([32]byte{byte(i), byte(round)}).Read(raw)
			order[n] = Change{i*chunks/changes + i + round, raw}
		}
		to.gets.Store(0)
		to.puts.Store(0)
		to.written.Store(0)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		now, stats, err := Fold(t.Context(), cfg, based(t, to, head), reader.ReadNode, func(yield func(Change, error) bool) {
			for _, c := range order {
				if !yield(c, nil) {
					return
				}
			}
		})
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Fatal(err)
		}
		reads, puts, written, allocated := to.gets.Load(), to.puts.Load(), to.written.Load(), after.TotalAlloc-before.TotalAlloc
		t.Logf("%d reads, %d bytes in %d objects written, %d bytes allocated", reads, written, puts, allocated)
		if reads > readsMax || written > writtenMax || puts != 1 || allocated > memoryMax || stats.Packs != 1 {
			t.Errorf("%d reads, %d bytes in %d objects written, %d bytes allocated", reads, written, puts, allocated)
		}
		if stored := based(t, to, now.Head); !reflect.DeepEqual(stored, now) {
			t.Errorf("the manifest says %+v, and the fold %+v", stored, now)
		}
		refs := func(m pack.Manifest) (refs uint64) {
			for _, p := range m.Packs {
				refs += p.Refs
			}
			return refs
		}
		own, _ := now.Manifest.Pack(now.Head.Manifest.Pack)
		if refs(now.Manifest) != refs(was) || own.Refs != 2*changes+1 { // chunks, their leaves, and the top
			t.Errorf("%d places before, %d now, %d of them in the new pack", refs(was), refs(now.Manifest), own.Refs)
		}
		d, err := reader.ReadDirectory(t.Context(), now.Head.Node.Pack)
		if err != nil {
			t.Fatal(err)
		}
		for n, c := range order {
			if d.Entries[n].CID != content.Sum(c.Raw) {
				t.Errorf("frame %d is not chunk %d", n, c.Index)
			}
		}
		if lineage := now.Manifest.Lineage; len(lineage) != int(round)+1 || lineage[0] != was.Root {
			t.Errorf("lineage %v", lineage)
		}
		head, was = now.Head, now.Manifest
	}
}

// TestAFoldIsWhatABuildWouldBe: the same root as of the changed disk, its packs counted
// right, however often it is folded.
func TestAFoldIsWhatABuildWouldBe(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		total := rapid.Uint64Range(1, 5*content.MapFanout/2).Draw(rt, "chunks")
		im, to := newImage(total, rapid.Uint64Range(40, 700).Draw(rt, "step"), 0), newMemory(t)
		cfg := config(to, im)
		cfg.Random = nil
		base := Base{} // of a blank disk
		if rapid.IntRange(0, 3).Draw(rt, "blank") > 0 {
			head, _ := build(t, cfg, im)
			base = based(t, to, head)
		} else {
			im.chunks = map[uint64][]byte{}
		}
		for round := range rapid.IntRange(1, 3).Draw(rt, "folds") {
			size := im.size + int64(rapid.SampledFrom([]int{0, 0, 1, 3000}).Draw(rt, "more"))*testChunk
			fresh := make(map[uint64][]byte)
			for _, i := range rapid.SliceOfN(rapid.Uint64Range(0, uint64(size)/testChunk-1), 0, 8).Draw(rt, "changed") {
				fresh[i] = chunkOf(1_000_000*uint64(round+1)+i, testChunk)
				if rapid.IntRange(0, 3).Draw(rt, "zero") == 0 {
					clear(fresh[i])
				}
			}
			im = im.changed(size, fresh)
			cfg.Size = size
			folded, _, err := Fold(t.Context(), cfg, base, pack.NewReader(to).ReadNode, changing(fresh))
			if err != nil {
				rt.Fatal(err)
			}
			whole, _ := build(t, cfg, im)
			if folded.Head.Root != whole.Root {
				rt.Fatalf("folded to %+v, and built to %+v", folded.Head.Root, whole.Root)
			}
			counted(t, to, folded.Head)
			counted(t, to, whole)
			base = folded
		}
		check(t, to, base.Head, im)
	})
}

// TestWholeSubtreesAreKept: of a map of three levels, what does not change is kept as far
// up as can be.
func TestWholeSubtreesAreKept(t *testing.T) {
	const fanout = content.MapFanout
	im := image{(2*fanout*fanout + 5) * testChunk, map[uint64][]byte{}}
	for _, i := range []uint64{0, 5*fanout + 3, fanout * fanout, 2*fanout*fanout + 1} {
		im.chunks[i] = chunkOf(i, testChunk)
	}
	to := newMemory(t)
	cfg := config(to, im)
	cfg.Random = nil
	head, _ := build(t, cfg, im)
	base := based(t, to, head)
	fresh := map[uint64][]byte{7: chunkOf(100, testChunk), 2*fanout*fanout + 2: chunkOf(101, testChunk)}
	to.forget()
	folded, _, err := Fold(t.Context(), cfg, base, pack.NewReader(to).ReadNode, changing(fresh))
	if err != nil {
		t.Fatal(err)
	}
	if n := to.asked(mem.Get); n != 5 { // the top, and two nodes below each side
		t.Errorf("%d reads", n)
	}
	counted(t, to, folded.Head)
	check(t, to, folded.Head, im.changed(im.size, fresh))
}

func TestChunksStoredAheadLieTogether(t *testing.T) {
	im := newImage(64, 1, 0)
	to := newMemory(t)
	cfg := config(to, im)
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	boot := []uint64{60, 3, 17, 42}
	for _, i := range boot {
		if err := b.Ahead(t.Context(), i, im.chunks[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(64) {
		if slices.Contains(boot, i) {
			err = b.Turn(t.Context(), i)
		} else {
			err = b.Add(t.Context(), i, im.chunks[i])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	head, stats, err := b.Finish(t.Context())
	if err != nil || stats.NewChunks != 64 || stats.Chunks != 64 || stats.StoredBytes == 0 {
		t.Fatalf("%+v, error %v", stats, err)
	}
	check(t, to, head, im)
	counted(t, to, head)
	d, err := pack.NewReader(to).ReadDirectory(t.Context(), head.Node.Pack)
	if err != nil {
		t.Fatal(err)
	}
	for n, i := range append(boot, 0, 1, 2, 4) {
		if d.Entries[n].CID != content.Sum(im.chunks[i]) {
			t.Errorf("frame %d is not chunk %d", n, i)
		}
	}
}

func TestKeepRefuses(t *testing.T) {
	im := newImage(3*content.MapFanout, 100, 0)
	to := newMemory(t)
	base, _ := build(t, config(to, im), im)
	m, err := pack.NewReader(to).ReadManifest(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	narrow := fakeKept(t, 1)
	narrow.Pack, narrow.Raw, narrow.Length = "farm/a/2026010100-00000000000000000000000000000000", testChunk, 100
	cfg := config(to, im)
	cfg.Random, cfg.Base = nil, &Base{base, m}
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	wantErr(t, b.Keep(t.Context(), 0, narrow), content.ErrForbidden)
	wantErr(t, b.Keep(t.Context(), 0, fakeKept(t, 0)), content.ErrInvalid) // of another size
	wantErr(t, b.KeepMap(t.Context(), content.Pos{Level: 1}, pack.Pair{Node: base.Node, Page: base.Node}), content.ErrInvalid)
	wantErr(t, b.KeepMap(t.Context(), content.Pos{Level: 3}, base.Top()), content.ErrInvalid)
	if err := b.KeepMap(t.Context(), content.Pos{Level: 2}, base.Top()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.Add(t.Context(), 5, chunkOf(5, testChunk)), content.ErrInvalid) // it lies below
	again, _, err := b.Finish(t.Context())
	if err != nil || again.Root != base.Root {
		t.Fatalf("%+v, error %v", again, err)
	}

	cfg.Base = nil
	if b, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	wantErr(t, b.KeepMap(t.Context(), content.Pos{Level: 2}, base.Top()), content.ErrInvalid)

	m.Packs = m.Packs[:1]
	m.Packs[0].Refs, m.Packs[0].Bytes = 0, 0
	cfg.Base = &Base{base, m}
	if b, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	_, _, err = b.Finish(t.Context())
	wantErr(t, err, content.ErrCorrupt) // the manifest does not count the map

	cfg.Size -= testChunk
	_, err = New(t.Context(), cfg)
	wantErr(t, err, content.ErrInvalid)
}

// TestEachChunkHasOneTurn: what is given ahead twice, or has its turn without, ends the
// root, and what a caller can't change is refused at once.
func TestEachChunkHasOneTurn(t *testing.T) {
	im, to := newImage(4, 1, 0), newMemory(t)
	for name, do := range map[string]func(*Builder) error{
		"twice": func(b *Builder) error {
			return errors.Join(b.Ahead(t.Context(), 1, im.chunks[1]), b.Ahead(t.Context(), 1, im.chunks[2]))
		},
		"not given": func(b *Builder) error { return b.Turn(t.Context(), 1) },
	} {
		b, err := New(t.Context(), config(to, im))
		if err = errors.Join(err, do(b)); err != nil {
			t.Fatal(err)
		}
		_, _, err = b.Finish(t.Context())
		if b.Abort(); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	failed := errors.New("the layer can't be read")
	_, _, err := Fold(t.Context(), config(to, im), Base{}, nil, func(yield func(Change, error) bool) { yield(Change{}, failed) })
	wantErr(t, err, failed)
	for _, c := range []Change{{4, im.chunks[1]}, {0, im.chunks[1][1:]}} {
		_, _, err := Fold(t.Context(), config(to, im), Base{}, nil, func(yield func(Change, error) bool) { yield(c, nil) })
		wantErr(t, err, content.ErrInvalid)
	}
}
