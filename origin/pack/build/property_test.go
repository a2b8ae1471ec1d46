package build

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// disk draws an image of up to some thousand chunks whose contents repeat.
func disk(t *rapid.T, label string) image {
	total := rapid.Uint64Range(1, 3*content.MapFanout).Draw(t, label+" chunks")
	im := image{int64(total) * testChunk, make(map[uint64][]byte)}
	variety := rapid.Uint64Range(1, 200).Draw(t, label+" variety")
	at := rapid.SliceOfN(rapid.Uint64Range(0, total-1), 0, 120).Draw(t, label+" data")
	for n, i := range at {
		im.chunks[i] = chunkOf(uint64(n)%variety, testChunk)
	}
	return im
}

// Whatever was built before, an image comes back, has the same root as when it
// is built alone, and nothing that is known is stored again.
func TestPropertyBuildersShareABucket(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		to := newMemory(t)
		stored := make(map[content.CID]bool)
		for _, name := range []string{"first", "second", "third"} {
			im := disk(rt, name)
			cfg := config(to, im)
			cfg.Random, cfg.Known = nil, to.loadIndex(t, "")
			cfg.PackSize = rapid.SampledFrom([]int{16 << 10, 256 << 10, pack.SizeTarget}).Draw(rt, "pack size")
			cfg.Workers = rapid.IntRange(1, 3).Draw(rt, "workers")
			h, s := build(t, cfg, im)
			check(t, to, h, im)
			fresh := 0
			for _, b := range im.chunks {
				if id := content.Sum(b); !stored[id] {
					stored[id] = true
					fresh++
				}
			}
			if int(s.NewChunks) != fresh {
				rt.Fatalf("%d chunks stored, %d are new", s.NewChunks, fresh)
			}
			alone := newMemory(t)
			if want, _ := build(t, config(alone, im), im); want.Root != h.Root {
				rt.Fatalf("root %+v, alone %+v", h.Root, want.Root)
			}
		}
	})
}
