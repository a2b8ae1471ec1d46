package fetch_test

import (
	"bytes"
	"testing"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/pack/verify"
)

// plant publishes a tree: chunks of any length, in two leaves of the map.
func (w *world) plant() *image {
	w.t.Helper()
	b, err := build.New(w.t.Context(), build.Config{Bucket: w.bucket, Scope: content.Mesh(), Kind: content.RootTree, PackSize: 1 << 20})
	w.check(err)
	im := &image{chunks: make([][]byte, content.MapFanout+60)}
	for i := range im.chunks {
		n := 1 + i*7919%4000
		if i%100 == 1 {
			n = content.ChunkSizeDefault - i // and some large ones
		}
		im.chunks[i] = append([]byte{1}, randomChunk(5, i)[:n-1]...)
		w.check(b.Add(w.t.Context(), uint64(i), im.chunks[i]))
	}
	im.Head, im.stats, err = b.Finish(w.t.Context())
	w.check(err)
	root, err := im.Head.Root.Encode(content.NewCodec())
	w.check(err)
	im.id = root.CID()
	im.Envelope, err = content.NewCodec().Marshal(record{im.Head, im.Lineage})
	w.check(err)
	return im
}

// TestATreeTravels: what is cut into chunks of any length is published, introduced, warmed
// and read by those who move disks.
func TestATreeTravels(t *testing.T) {
	w := newWorld(t)
	im := w.plant()
	size := 0
	for _, c := range im.chunks {
		size += len(c)
	}
	if r := im.Head.Root; r.Kind != content.RootTree || r.Count != uint64(len(im.chunks)) || r.Size != int64(size) {
		t.Fatalf("root %+v of %d chunks and %d bytes", r, len(im.chunks), size)
	}
	report, err := verify.Config{Reader: pack.NewReader(w.bucket)}.Image(t.Context(), im.Head)
	w.check(err)
	w.check(report.Err())
	if report.Chunks != uint64(len(im.chunks)) {
		t.Errorf("%d chunks verified", report.Chunks)
	}

	g := w.farm("north", 3)[0].open(im)
	came := map[fetch.Source]int{}
	for range 2 { // the second time it is all here
		w.check(g.Warm(t.Context(), func(s fetch.Source, n int) { came[s] += n }))
	}
	// The others learn of the root from who asks them, as they lead some of its runs.
	if came[fetch.FromFarm] == 0 || came[fetch.FromCache] < size || came[fetch.FromFarm]+came[fetch.FromOrigin]+came[fetch.FromCache] != 2*size {
		t.Errorf("of %d bytes came %v", size, came)
	}
	for i, want := range im.chunks {
		p := make([]byte, len(want))
		w.check(g.ReadChunk(t.Context(), uint64(i), 0, p))
		if !bytes.Equal(p, want) {
			t.Fatalf("chunk %d: other bytes", i)
		}
	}
	start, end, err := g.NextData(t.Context(), 0)
	if err != nil || start != 0 || end != content.MapFanout {
		t.Errorf("data from %d to %d, %v", start, end, err)
	}
}

// TestReadInTurn: who is in no hurry reads what another brings in at the same time, and its bytes stay until they were
// looked at.
func TestReadInTurn(t *testing.T) {
	w := newWorld(t)
	im := w.plant()
	g := w.farm("north", 1)[0].open(im)
	warmed := make(chan error)
	go func() { warmed <- g.Warm(t.Context(), nil) }()
	for i, want := range im.chunks {
		p := make([]byte, len(want))
		w.check(g.ReadInTurn(t.Context(), uint64(i), 0, p))
		if !bytes.Equal(p, want) {
			t.Fatalf("chunk %d: other bytes", i)
		}
	}
	w.check(<-warmed)
}
