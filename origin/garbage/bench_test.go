package garbage

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/mem"
)

// many is a world with so many packs more, of which a list alone knows.
type many struct {
	*world
	packs int
	size  int64
	gone  map[string]bool
	peak  uint64
}

// manyID is the n-th of them.
func manyID(n int) pack.ID {
	var random [16]byte
	binary.BigEndian.PutUint64(random[:], uint64(n))
	return pack.ID(fmt.Sprintf("mesh/2026010100-%x", random))
}

// List implements bucket.Bucket.
func (m *many) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		shown := prefix != "" || after != ""
		for info, err := range m.world.List(ctx, prefix, after) {
			if !shown && strings.HasPrefix(info.Key, "packs/mesh/20261") {
				shown = true
				if !m.yield(yield) {
					return
				}
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func (m *many) yield(yield func(bucket.Info, error) bool) bool {
	for n := range m.packs {
		if n%100_000 == 0 {
			m.sample()
		}
		key := manyID(n).Key()
		if !m.gone[key] && !yield(bucket.Info{Key: key, Size: m.size, Modified: m.now(), Now: m.now()}, nil) {
			return false
		}
	}
	return true
}

// sample notes how much memory is in use.
func (m *many) sample() {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	m.peak = max(m.peak, s.HeapAlloc)
}

// Delete implements bucket.Bucket.
func (m *many) Delete(ctx context.Context, key string) error {
	if strings.HasPrefix(key, "packs/mesh/20260") {
		m.world.mu.Lock()
		defer m.world.mu.Unlock()
		m.gone[key] = true
		return nil
	}
	return m.world.Delete(ctx, key)
}

// packsOfName is how many packs a name needs: an image of some 500 MB.
const packsOfName = 15

// name has records name all of them but the last dead ones.
func (m *many) name(t testing.TB, dead int) {
	t.Helper()
	codec := content.NewCodec()
	for first := 0; first < m.packs-dead; first += packsOfName {
		manifest := pack.Manifest{}
		for n := first; n < min(first+packsOfName, m.packs-dead); n++ {
			manifest.Packs = append(manifest.Packs, pack.PackRefs{ID: manyID(n), Refs: 1, Bytes: uint64(m.size)})
		}
		root := content.Root{Kind: content.RootDisk, Size: 1 << 30, ChunkSize: content.ChunkSizeDefault}
		encoded, err := root.Encode(codec)
		if err != nil {
			t.Fatal(err)
		}
		manifest.Root = encoded.CID()
		v, err := manifest.Encode(codec)
		if err != nil {
			t.Fatal(err)
		}
		id, err := pack.NewID(content.Mesh(), m.now(), zeros(first))
		if err != nil {
			t.Fatal(err)
		}
		w := pack.NewWriter(id, nil)
		at := w.Add(pack.RoleManifest, v.CID(), len(v.Bytes()), pack.CodecRaw, v.Bytes())
		sealed, err := w.Seal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Put(t.Context(), id.Key(), bucket.Bytes(sealed.Bytes), bucket.IfAbsent()); err != nil {
			t.Fatal(err)
		}
		m.put(t, content.KindImage, fmt.Sprintf("image-%d", first), "", pack.Head{Root: root, Scope: content.Mesh(), Manifest: pack.Extent{CID: v.CID(), Location: at}})
	}
}

// zeros is a source of names that are known.
type zeros int

func (z zeros) Read(p []byte) (int, error) {
	clear(p)
	binary.BigEndian.PutUint64(p, uint64(z))
	return len(p), nil
}

// TestManyPacks: what a collection asks of a store, and takes of memory, with so many packs, a tenth of them dead.
func TestManyPacks(t *testing.T) {
	const packs = 10_000
	requests, heap := collected(t, packs)
	t.Logf("%d packs: %d requests in three runs, %d MiB of memory", packs, requests, heap>>20)
	// Of each run 10 pages of packs and 600 records with a manifest each, and of the second 1,000 deletions; with what little else there is.
	if requests > packs/10+3*1300 {
		t.Fatalf("%d requests for %d packs", requests, packs)
	}
}

// collected returns the requests of three runs: the first marks, the second deletes, the third finds nothing.
func collected(t testing.TB, packs int) (requests int64, peak uint64) {
	t.Helper()
	m := &many{world: newWorld(t), packs: packs, size: 32 << 20, gone: map[string]bool{}}
	m.name(t, packs/10)
	m.sample()
	before := m.peak
	cfg := m.config()
	cfg.Bucket = m
	cfg.Progress = func(p Progress) {
		if p.Done%1000 == 0 {
			m.sample()
		}
	}
	for i, deleted := range []int64{0, int64(packs / 10), 0} {
		r, err := Run(t.Context(), cfg)
		if err != nil || r.Deleted.Objects != deleted {
			t.Fatalf("run %d: %+v, %v", i, r, err)
		}
		t.Logf("run %d: %d requests, %d lists, %d reads, %d puts", i, r.Requests, m.Count(mem.List), m.Count(mem.Get), m.Count(mem.Put))
		requests += r.Requests
		m.later(GraceDefault + time.Hour)
	}
	return requests, m.peak - before
}

// BenchmarkMillionPacks is TestManyPacks for what a large mesh has: 30 TiB. What is listed makes the time of it.
func BenchmarkMillionPacks(b *testing.B) {
	for b.Loop() {
		requests, peak := collected(b, 1_000_000)
		b.ReportMetric(float64(requests), "requests")
		b.ReportMetric(float64(peak)/(1<<20), "MiB")
	}
}
