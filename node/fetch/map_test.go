package fetch_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack/build"
)

// TestMapIsReadAhead asks where the data of a sparse disk are that has one chunk in each
// leaf of its map: the leaves are not brought in one by one.
func TestMapIsReadAhead(t *testing.T) {
	const leaves = 200
	w := newWorld(t)
	ctx := context.Background()
	b, err := build.New(ctx, build.Config{Bucket: w.bucket, Scope: content.Mesh(), Size: leaves * content.MapFanout * content.ChunkSizeDefault, PackSize: 4 << 20})
	w.check(err)
	chunk := randomChunk(1, 1)
	for n := range uint64(leaves) {
		w.check(b.Add(ctx, n*content.MapFanout+n, chunk))
	}
	im := &image{}
	im.Head, im.stats, err = b.Finish(ctx)
	w.check(err)
	root, err := im.Head.Root.Encode(content.NewCodec())
	w.check(err)
	im.id = root.CID()
	im.Envelope, err = content.NewCodec().Marshal(record{im.Head, nil})
	w.check(err)
	g := w.join("a", nil).open(im)
	found, next := 0, uint64(0)
	for {
		start, end, err := g.NextData(ctx, next)
		if errors.Is(err, io.EOF) {
			break
		}
		w.check(err)
		if n := uint64(found); start != n*content.MapFanout+n || end != start+1 {
			t.Fatalf("data %d at %d to %d", found, start, end)
		}
		found, next = found+1, end
	}
	if found != leaves {
		t.Errorf("%d runs of data, want %d", found, leaves)
	}
	if gets := w.gets.Load(); gets > leaves/10 {
		t.Errorf("%d requests to the origin for %d leaves", gets, leaves)
	}
}
