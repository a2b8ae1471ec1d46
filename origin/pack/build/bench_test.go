package build

import (
	"context"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// void is a bucket that takes everything and keeps nothing.
type void struct{ *memory }

func (v void) Put(_ context.Context, key string, body bucket.Body, _ bucket.Condition) (bucket.Info, error) {
	return bucket.Info{Key: key, Size: body.Size()}, nil
}

// BenchmarkBuilder imports 64 MiB of new chunks, half of each compressible.
func BenchmarkBuilder(b *testing.B) {
	const chunks = 512
	im := image{chunks * content.ChunkSizeDefault, make(map[uint64][]byte)}
	for i := range uint64(chunks) {
		im.chunks[i] = chunkOf(i, content.ChunkSizeDefault)
	}
	to := newMemory(b)
	cfg := config(to, im)
	cfg.Bucket = void{to}
	cfg.ChunkSize, cfg.PackSize = content.ChunkSizeDefault, pack.SizeTarget
	b.SetBytes(im.size)
	b.ReportAllocs()
	for b.Loop() {
		build(b, cfg, im)
	}
}

// BenchmarkReadFrames reads and checks the frames of one run.
func BenchmarkReadFrames(b *testing.B) {
	im := image{16 * content.ChunkSizeDefault, make(map[uint64][]byte)}
	for i := range uint64(16) {
		im.chunks[i] = chunkOf(i, content.ChunkSizeDefault)
	}
	to := newMemory(b)
	cfg := config(to, im)
	cfg.ChunkSize, cfg.PackSize = content.ChunkSizeDefault, pack.SizeTarget
	h, _ := build(b, cfg, im)
	r := pack.NewReader(to)
	n, err := r.ReadNode(b.Context(), h.Scope, 1, h.Top())
	if err != nil {
		b.Fatal(err)
	}
	var frames []pack.Extent
	for i := range n.Page.Len() {
		if at, ok := n.Page.Child(i); ok && at.Run().N == 0 {
			frames = append(frames, pack.Extent{CID: n.Node.Entry(i), Location: at})
		}
	}
	b.SetBytes(int64(len(frames)) * content.ChunkSizeDefault)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.ReadFrames(b.Context(), frames); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIndexLocate(b *testing.B) {
	im := newImage(20000, 1, 0)
	to := newMemory(b)
	build(b, config(to, im), im)
	x := to.loadIndex(b, "")
	ids := make([]content.CID, 0, len(im.chunks))
	for _, chunk := range im.chunks {
		ids = append(ids, content.Sum(chunk))
	}
	i := 0
	for b.Loop() {
		if _, ok := x.Locate(b.Context(), ids[i%len(ids)]); !ok {
			b.Fatal("not found")
		}
		i += 7919
	}
}
