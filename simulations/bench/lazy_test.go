package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const (
	// lazyFiles of lazySize make the tree that a process begins with, and lazyRead of them are read before it is ready.
	lazyFiles, lazySize, lazyRead = 64, 32 << 20, 6
	lazyMost                      = 0.3
	lazyRounds                    = 3
)

// BenchmarkLazyStart times how long it takes until a process is ready that reads a tenth of a tree of 2 GiB, on a node that has
// none of it, before all of it is here and behind that; and what the SDK takes to get as much from the store.
func BenchmarkLazyStart(b *testing.B) {
	s := newSite(b)
	src := filepath.Join(s.dir, "src")
	err := os.Mkdir(src, 0o755)
	for k := range lazyFiles {
		if err == nil {
			err = os.Rename(random(b, s.dir, lazySize), filepath.Join(src, fmt.Sprintf("f%02d", k)))
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	run(b, s.first, "tree", "import", "big", src)
	all := filepath.Join(s.dir, "all")
	if out, err := exec.CommandContext(b.Context(), "sh", "-c", "cat "+src+"/* > "+all).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	size := int64(lazyFiles * lazySize)
	s.run(s.puller, s3Put, role{Store: s.store.URL, Key: "bench/all", File: all, Size: size})
	for b.Loop() {
		var lazy, blocking, sdk []float64
		for range lazyRounds {
			lazy = append(lazy, s.provision("--lazy"))
			blocking = append(blocking, s.provision())
			sdk = append(sdk, s.seconds(s3Get, role{Store: s.store.URL, Key: "bench/all", File: filepath.Join(s.dir, "got"), Size: size}))
		}
		atMost(b, "ready by a tenth of 2 GiB, lazy, beside blocking", "s", median(lazy), lazyMost*median(blocking))
		atMost(b, "the same, blocking, beside the SDK", "s", median(blocking), median(sdk))
	}
}

// provision starts a node, and has it run a process that is ready once it has read some of its tree.
func (s *site) provision(how ...string) (seconds float64) {
	s.b.Helper()
	n := another(s.b, s.lab, "a")
	start := time.Now()
	run(s.b, n, append(append([]string{"instance", "provision", "big", "--from", "tree:big", "--no-port", "--ready", "log:begun"}, how...),
		"--command", fmt.Sprintf("sh -c 'for k in $(seq 0 %d); do cat $(printf f%%02d $((k*10))) >/dev/null; done; echo begun; exec sleep 100000'", lazyRead-1))...)
	seconds = time.Since(start).Seconds()
	run(s.b, n, "instance", "obliterate", "big")
	if err := n.Stop(); err != nil {
		s.b.Fatal(err)
	}
	return seconds
}
