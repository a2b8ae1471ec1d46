package merge

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// TestHotFits: whatever was read, and whatever the record had, what comes out may stand in a record of that root.
func TestHotFits(t *testing.T) {
	c := content.NewCodec()
	rapid.Check(t, func(r *rapid.T) {
		chunks := rapid.Int64Range(1, 4*content.MapFanout).Draw(r, "chunks")
		head := &pack.Head{Root: content.Root{Kind: content.RootDisk, Size: chunks * content.ChunkSizeDefault, ChunkSize: content.ChunkSizeDefault}}
		index := rapid.Uint64Range(0, 5*content.MapFanout)
		read := rapid.SliceOfNDistinct(index, 0, touch.Max, rapid.ID[uint64]).Draw(r, "read")
		var had *catalog.Boot
		if before := rapid.SliceOfNDistinct(index, 0, 200, rapid.ID[uint64]).Draw(r, "had"); len(before) > 0 {
			had = Merge(content.Sum(nil), time.Now(), [][]uint64{before})
		}
		of := catalog.Folded{Head: head, Segments: make([]content.SegmentRef, rapid.IntRange(0, 12).Draw(r, "segments"))}
		hot := Hot(c, of, had, read)
		if hot == nil {
			return
		}
		root, err := head.Root.Encode(c)
		if err != nil || hot.Root != root.CID() || len(of.Segments) > catalog.HotSegmentsMax {
			r.Fatalf("%+v, %v", hot, err)
		}
		for chunk := range hot.All() {
			if chunk >= uint64(chunks) {
				r.Fatalf("chunk %d of %d", chunk, chunks)
			}
			if len(read) > 0 && !slices.Contains(read, chunk) {
				r.Fatalf("chunk %d was not read", chunk)
			}
		}
	})
}
