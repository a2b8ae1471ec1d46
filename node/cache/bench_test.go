package cache

import (
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

func filled(b *testing.B) (*Cache, []content.CID) {
	c := build(b, Config{Quota: QuotaDefault})
	var ids []content.CID
	for n := range 4096 {
		v := object(n, 128<<10)
		put(b, c, v)
		ids = append(ids, v.CID())
	}
	return c, ids
}

func BenchmarkReadAt4K(b *testing.B) {
	c, ids := filled(b)
	p := make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	n := 0
	for b.Loop() {
		if err := c.ReadAt(ids[n*7%len(ids)], p, 4096*(n%32)); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

func BenchmarkReadAt4KParallel(b *testing.B) {
	c, ids := filled(b)
	var seed atomic.Uint64
	b.SetBytes(4096)
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(seed.Add(1), 0))
		p := make([]byte, 4096)
		for pb.Next() {
			if err := c.ReadAt(ids[rng.IntN(len(ids))], p, 4096*rng.IntN(32)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkPut is that of a full cache: each Put evicts.
func BenchmarkPut(b *testing.B) {
	c := build(b, Config{})
	v := make([]content.Verified, 4096)
	for n := range v {
		v[n] = object(n, 128<<10)
		put(b, c, v[n])
	}
	b.SetBytes(128 << 10)
	n := 0
	for b.Loop() {
		put(b, c, v[n%len(v)])
		n++
	}
}

// BenchmarkOpenTiB opens a cache of 1 TiB in chunks of 128 KiB. Its index is
// synthetic; there are no chunks behind it.
func BenchmarkOpenTiB(b *testing.B) {
	const quota, objects = 1 << 40, 1 << 40 / content.ChunkSizeDefault
	dir := b.TempDir()
	c := build(b, Config{Dir: dir, Quota: quota})
	t, cl, displaced := c.table.Load(), classOf(content.ChunkSizeDefault), 0
	for n := range objects {
		at := newPlace(n/cl.slots(), n%cl.slots())
		t.setClass(at.slab(), uint32(cl)+1)
		k := key{max(rand.Uint64()>>tagShift, 1), [2]uint32{rand.Uint32(), rand.Uint32()}}
		if i, ok := t.vacancy(k); ok {
			t.set(i, k.word()|fullBit, at, ReachMesh)
		} else {
			displaced++
		}
	}
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := Open(Config{Dir: dir, Quota: quota, ScrubRate: -1})
		if err != nil {
			b.Fatal(err)
		}
		st := c.Stats()
		b.ReportMetric(float64(st.IndexBytes)/float64(st.Chunks), "index-B/chunk")
		b.ReportMetric(float64(st.IndexBytes)/1024, "index-B/GiB")
		b.ReportMetric(float64(displaced), "displaced")
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(diskSize(b, filepath.Join(dir, "index"))), "index-file-B")
}
