package oci

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

const (
	// benchRate is what the registry sends, in bytes a second, and benchNodes pull at once.
	benchRate, benchNodes = 100 << 20, 4
	// directMost and secondMost are the bars: of the time that as many direct pulls take at once, with the farm's nodes cold, and of
	// what one takes alone, once they have it.
	directMost, secondMost = 0.6, 1.5
)

// BenchmarkPull times containerd on some hosts that pull one image at once: from the registry itself, through cold nodes of a
// farm, and through nodes that have it.
func BenchmarkPull(b *testing.B) {
	for b.Loop() {
		w := newWorld(b, benchNodes, "")
		w.publish(b, "team/app", "1", soak.Of(64<<20, 1<<30))
		if err := lab.Narrow(b.Context(), w.host, benchRate); err != nil {
			b.Fatal(err)
		}
		var runtimes []*runtime
		for _, n := range w.nodes {
			runtimes = append(runtimes, w.containerd(b, n))
		}
		timed := func(pull func(r *runtime) error) float64 {
			b.Helper()
			begun := time.Now()
			var all errgroup.Group
			for _, r := range runtimes {
				all.Go(func() error { return pull(r) })
			}
			if err := all.Wait(); err != nil {
				b.Fatal(err)
			}
			took := time.Since(begun).Seconds()
			for _, r := range runtimes {
				r.forget(b, "team/app:1")
			}
			return took
		}
		direct := timed(func(r *runtime) error {
			_, err := r.ctr(b, "images", "pull", "--snapshotter", "native", "--plain-http", "--hosts-dir", filepath.Join(r.dir, "none"), r.registry+"/team/app:1")
			return err
		})
		mirror := func(r *runtime) error { return r.pull(b, "team/app:1") }
		cold, warm := timed(mirror), timed(mirror)
		b.ReportMetric(direct, "direct-s")
		b.ReportMetric(cold/direct, "cold/direct")
		b.ReportMetric(warm/direct, "warm/direct")
		if cold > directMost*direct && soak.Full() {
			b.Errorf("cold nodes took %.1f s, a direct pull %.1f s", cold, direct)
		}
		if warm > secondMost*direct {
			b.Errorf("warm nodes took %.1f s, a direct pull %.1f s", warm, direct)
		}
	}
}
