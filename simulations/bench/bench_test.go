// Package bench measures real nodes beside their peers, in turns in one run, so
// that the ratios mean something on any machine.
package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/grangemesh/grange/simulations/lab"
)

// rounds of each figure, in turns with its peers; the median counts.
const rounds = 5

// say prints a figure beside the most that it may be, and the part of that it takes.
func say(b *testing.B, what, unit string, got, most float64) {
	b.Logf("%-56s %9.2f %-12s at most %9.2f  (%.2f)", what, got, unit, most, got/most)
}

// TestMain lets this binary stand in for a peer, on a host of the lab.
func TestMain(m *testing.M) {
	if part := os.Getenv(partEnv); part != "" {
		os.Exit(play(part))
	}
	os.Exit(m.Run())
}

// newLab makes a lab that ends with the benchmark.
func newLab(b testing.TB, dir string) *lab.Lab {
	b.Helper()
	binary, err := filepath.Abs("../../bin/grange")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		b.Fatalf("%v; run `make build` first", err)
	}
	l, err := lab.New(b.Context(), binary, dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	return l
}

// founder starts the first node of a lab.
func founder(b testing.TB, l *lab.Lab, origin string) *lab.Node {
	b.Helper()
	n, err := l.Start(b.Context(), "a", origin)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// random makes a file that does not compress, and returns its path.
func random(b testing.TB, dir string, size int) string {
	b.Helper()
	path := filepath.Join(dir, "random.raw")
	if out, err := exec.Command("sh", "-c", fmt.Sprintf("head -c %d /dev/urandom > %s", size, path)).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return path
}

func median(f []float64) float64 {
	f = slices.Clone(f)
	slices.Sort(f)
	return f[len(f)/2]
}

// BenchmarkMemory says how much memory a node takes for each GiB in its cache.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		l := newLab(b, dir)
		first := founder(b, l, "")
		if _, err := first.Run(b.Context(), "image", "import", "disk", random(b, dir, pullSize)); err != nil {
			b.Fatal(err)
		}
		second, err := l.Start(b.Context(), "a", "")
		if err != nil {
			b.Fatal(err)
		}
		empty := anonymous(b, second)
		if _, err := second.Run(b.Context(), "image", "warm", "disk"); err != nil {
			b.Fatal(err)
		}
		if err := second.Stop(); err != nil {
			b.Fatal(err)
		}
		if err := second.Restart(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.Logf("memory of a node: %.1f MiB with an empty cache, %.1f MiB restarted with 1 GiB cached", float64(empty)/(1<<20), float64(anonymous(b, second))/(1<<20))
	}
}

// anonymous returns the bytes of memory of a node's process that are not pages of
// files.
func anonymous(b *testing.B, n *lab.Node) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no RssAnon")
	return 0
}
