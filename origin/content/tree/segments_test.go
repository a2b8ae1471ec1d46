package tree

import (
	"context"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// TestSegmentsAreAsWritten: what a tree tells of its segments is what its writer noted of those without a hole, and a writer that
// knows them reads no other files.
func TestSegmentsAreAsWritten(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		top := drawNode(r, 0, "")
		for k := range rapid.IntRange(0, 40).Draw(r, "more") {
			size := rapid.SampledFrom([]int{0, 1, 900, 30_000, largeMin - 1, largeMin, 400_000}).Draw(r, "size")
			top.in = append(top.in, &node{Entry: Entry{Name: fmt.Appendf(nil, "zz%03d", k), Mode: Regular, Size: int64(size)}, data: randomData(k, size)})
		}
		sortNodes(top.in)
		chunks := top.written(t)
		of, err := Open(t.Context(), content.NewCodec(), chunks.root(), chunks.ReadChunk)
		if err != nil {
			r.Fatal(err)
		}
		told, stamps := map[content.CID]Segment{}, map[string]uint64{}
		err = of.Segments(t.Context(), Cuts{
			Stamp: func(f File, number uint64) []byte {
				stamps[string(f.Name)] = number
				return []byte{1}
			},
			CID: func(_ context.Context, index uint64) (content.CID, error) {
				if content.IsZero(chunks[index]) {
					return content.CID{}, nil
				}
				return content.Sum(chunks[index]), nil
			},
			Note: func(key content.CID, s Segment) { told[key] = s },
		})
		if err != nil {
			r.Fatal(err)
		}
		noted := map[content.CID]Segment{}
		w, err := NewWriter(Config{Codec: content.NewCodec(), Add: func(context.Context, uint64, []byte) error { return nil }, Note: func(key content.CID, s Segment) { noted[key] = s }})
		if err == nil {
			stamp(top)
			err = top.write(t.Context(), w)
		}
		if err == nil {
			_, err = w.Close(t.Context())
		}
		if err != nil {
			r.Fatal(err)
		}
		zeros := 0
		for key, s := range noted {
			got, ok := told[key]
			switch {
			case !ok && len(s.Pieces) > 0 && !hasHole(s, chunks):
				r.Errorf("nothing is told of a segment of %d pieces", len(s.Pieces))
			case !ok:
				zeros++
			case len(got.Pieces) != len(s.Pieces) || len(got.Pieces) > 0 && got.Pieces[0] != s.Pieces[0] || len(got.Ranges) != len(s.Ranges) || (got.Ranges == nil) != (s.Ranges == nil):
				r.Errorf("told %+v, want %+v", got, s)
			}
		}
		if len(told)+zeros != len(noted) {
			r.Errorf("%d segments are told of, %d were written, %d of them with holes", len(told), len(noted), zeros)
		}
	})
}

// stamp gives every file the same stamp.
func stamp(n *node) {
	n.stamp = []byte{1}
	for _, in := range n.in {
		stamp(in)
	}
}

func hasHole(s Segment, chunks row) bool {
	for _, p := range s.Pieces {
		for _, c := range chunks {
			if content.IsZero(c) && content.Sum(c) == p.CID {
				return true
			}
		}
	}
	return false
}
