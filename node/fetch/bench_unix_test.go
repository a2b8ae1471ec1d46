//go:build unix

package fetch_test

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// benchChunks make 256 MiB.
const benchChunks = 256 << 20 / content.ChunkSizeDefault

// BenchmarkWarm has a member bring in an image of random bytes from another one of
// its farm, both ends in this process: seconds and CPU seconds a GiB.
func BenchmarkWarm(b *testing.B) {
	w := newWorld(b)
	im := w.publish(imageConfig{chunks: benchChunks, dense: true})
	first := w.join("north", nil)
	w.check(first.open(im).Warm(b.Context(), nil))
	var wall, cpu []float64
	for b.Loop() {
		m := w.join("north", nil)
		begun, before := time.Now(), cpuSeconds()
		w.check(m.open(im).Warm(b.Context(), nil))
		wall, cpu = append(wall, time.Since(begun).Seconds()), append(cpu, cpuSeconds()-before)
		m.leave()
	}
	gib := float64(im.stats.RawBytes) / (1 << 30)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(wall)/gib, "s/GiB")
	b.ReportMetric(median(cpu)/gib, "CPU-s/GiB")
}

// BenchmarkFarmRead reads 4 KiB of chunks as a guest whose node lacks them.
func BenchmarkFarmRead(b *testing.B) {
	w := newWorld(b)
	im := w.publish(imageConfig{chunks: benchChunks, dense: true})
	first := w.join("north", nil)
	w.check(first.open(im).Warm(b.Context(), nil))
	var took []float64
	g, order := first.open(im), []int(nil)
	for b.Loop() {
		if len(order) == 0 {
			g, order = w.join("north", nil).open(im), rand.Perm(benchChunks)[:400]
		}
		begun := time.Now()
		w.check(g.ReadChunk(b.Context(), uint64(order[0]), 8192, make([]byte, 4096)))
		took, order = append(took, time.Since(begun).Seconds()*1e3), order[1:]
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2], "p50-ms")
	b.ReportMetric(took[len(took)*99/100], "p99-ms")
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}
