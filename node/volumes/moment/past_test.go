package moment

import (
	"context"
	"encoding/binary"
	"io"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/content"
)

// counted is a blank root of which each read counts.
type counted struct{ reads atomic.Int64 }

func (c *counted) TryReadChunk(_ uint64, _ int, p []byte) bool {
	c.reads.Add(1)
	clear(p)
	return true
}
func (c *counted) ReadChunk(_ context.Context, i uint64, off int, p []byte) error {
	c.TryReadChunk(i, off, p)
	return nil
}
func (*counted) NextData(context.Context, uint64) (uint64, uint64, error) { return 0, 0, io.EOF }

// TestWhatIsAskedOfThePastIsWhatItCosts: a volume with 100,000 changed extents is asked for its
// changes part by part, as block status is; each part costs what lies in it, read once, and
// one who wants but the first few of the rest pays for those.
func TestWhatIsAskedOfThePastIsWhatItCosts(t *testing.T) {
	const extents, stride, part, first = 100_000, 8 << 10, 8 << 20, 5
	const size = extents * stride
	root := &counted{}
	dir, id := filepath.Join(t.TempDir(), "disk"), content.VolumeID{1}
	if err := volume.Create(dir, id); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(volume.Config{Dir: dir, ID: id, Epoch: 1, Size: size, Source: root, SourceSize: size, Memory: 1 << 20}) // most of its map is in files
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	seal := func() content.Position {
		at, err := v.Seal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	was, b := seal(), make([]byte, 512)
	for i := range int64(extents) {
		binary.LittleEndian.PutUint64(b, uint64(i)+1)
		if err := v.WriteAt(t.Context(), b, i*7919%extents*stride, false); err != nil { // in no order
			t.Fatal(err)
		}
	}
	opened := 0
	past := &Past{
		Nodes: func() (fold.Nodes, error) { t.Error("maps are compared"); return nil, content.ErrUnavailable },
		IsNow: func(m Moment) bool { return m.At == v.End() },
		Open: func(_ context.Context, number uint64) (Moment, error) {
			opened++
			at := was
			if number == 0 {
				at = seal()
			}
			return Moment{Vol: v, At: at, Size: size, Close: func() error { return nil }}, nil
		},
	}
	ask := func(within blockdev.Range, most int) (n int) {
		t.Helper()
		root.reads.Store(0)
		for x, err := range past.Changes(t.Context(), 1, within) {
			if err != nil {
				t.Fatal(err)
			}
			if want := within.Offset + int64(n)*stride; x.Offset != want || x.Length != changeUnit {
				t.Fatalf("%+v, want %d", x, want)
			}
			if n++; n == most {
				break
			}
		}
		return n
	}
	total := int64(0)
	for off := int64(0); off < size; off += part {
		n := ask(blockdev.Range{Offset: off, Length: part}, extents)
		reads := root.reads.Load()
		if total += reads; reads > int64(8*n)+8 { // each is compared by the sector where a root is under it
			t.Fatalf("at %d %d extents cost %d reads", off, n, reads)
		}
	}
	t.Logf("%d extents in %d parts cost %d reads, %d moments", extents, size/part, total, opened)
	for _, off := range []int64{0, size / 2, size - first*stride} {
		if n := ask(blockdev.Range{Offset: off, Length: size - off}, first); n != first || root.reads.Load() > 100 {
			t.Errorf("the first %d of many cost %d reads", n, root.reads.Load())
		}
	}
	if opened != 2 {
		t.Errorf("%d moments were opened, for two", opened)
	}
}
