package volume

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev/volume/extents"
)

// BenchmarkSyncedWrites writes 4 KiB at a time at random places and flushes each, with a fold
// of all that there is after each 128 MiB, and reports the median and the slowest in a
// hundred: with files of segments that are used again, and without.
func BenchmarkSyncedWrites(b *testing.B) {
	for _, spares := range []bool{true, false} {
		name := map[bool]string{true: "again", false: "anew"}[spares]
		b.Run(name, func(b *testing.B) {
			cfg := config(create(b))
			cfg.Size = 256 << 20
			v, err := Open(cfg)
			must(b, err)
			reused, segments := 0, 0
			v.cfg.Step = func(name string) {
				switch name {
				case "file":
					segments++
				case "reused":
					reused++
				}
			}
			p, rng := make([]byte, extents.Unit), rand.New(rand.NewPCG(1, 1))
			at := func() int64 { return rng.Int64N(cfg.Size/extents.Unit) * extents.Unit }
			fold := func() {
				through, err := v.Seal(b.Context())
				must(b, err)
				must(b, v.Rebase(nil, 0, testChunk, through))
				v.Release(through)
				v.work.Wait()
				if !spares {
					_, err := v.spares.Shed(0)
					must(b, err)
				}
			}
			for range 128 << 20 / extents.Unit {
				must(b, v.WriteAt(b.Context(), p, at(), false))
			}
			fold()
			var took []time.Duration
			used := processorTime(b)
			for n := 0; b.Loop(); n++ {
				if n%(128<<20/extents.Unit) == 128<<20/extents.Unit-1 {
					fold()
				}
				begun := time.Now()
				must(b, v.WriteAt(b.Context(), p, at(), true))
				took = append(took, time.Since(begun))
			}
			b.ReportMetric((processorTime(b)-used).Seconds()*1e6/float64(b.N), "cpu-µs/op")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
			b.ReportMetric(float64(reused)/float64(segments), "reused")
			must(b, v.Close())
		})
	}
}
