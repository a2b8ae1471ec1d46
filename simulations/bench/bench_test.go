// Package bench measures real nodes beside their peers, in turns in one run, so
// that the ratios mean something on any machine.
package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/lab"
)

// rounds of each figure, in turns with its peers; the median counts.
const rounds = 5

// atMost prints a figure beside the most that it may be, and the part of that it takes;
// atLeast the least, and the part of the figure that this is. Over 1 misses the bar.
func atMost(b *testing.B, what, unit string, got, bar float64) {
	b.Logf("%-56s %9.2f %-12s at most  %9.2f  (%.2f)", what, got, unit, bar, got/bar)
}

func atLeast(b *testing.B, what, unit string, got, bar float64) {
	b.Logf("%-56s %9.2f %-12s at least %9.2f  (%.2f)", what, got, unit, bar, bar/got)
}

// TestMain lets this binary stand in for a peer, on a host of the lab.
func TestMain(m *testing.M) {
	if part := os.Getenv(partEnv); part != "" {
		os.Exit(play(part))
	}
	os.Exit(m.Run())
}

// newLab makes a lab that ends with the test.
func newLab(tb testing.TB, dir string) *lab.Lab {
	tb.Helper()
	l := openLab(tb, dir)
	tb.Cleanup(func() { closeLab(tb, l) })
	return l
}

// inLab does one round in a lab of its own.
func inLab(tb testing.TB, do func(*lab.Lab)) {
	tb.Helper()
	l := openLab(tb, tb.TempDir())
	defer closeLab(tb, l)
	do(l)
}

func openLab(tb testing.TB, dir string) *lab.Lab {
	tb.Helper()
	binary, err := filepath.Abs("../../bin/grange")
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		tb.Fatalf("%v; run `make build` first", err)
	}
	l, err := lab.New(tb.Context(), binary, dir)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func closeLab(tb testing.TB, l *lab.Lab) {
	if err := l.Close(); err != nil {
		tb.Error(err)
	}
}

// founder starts the first node of a lab.
func founder(tb testing.TB, l *lab.Lab, origin string) *lab.Node {
	tb.Helper()
	n, err := l.Start(tb.Context(), "a", origin)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// another starts one more node, of a farm.
func another(tb testing.TB, l *lab.Lab, farm string) *lab.Node {
	tb.Helper()
	n, err := l.Start(tb.Context(), farm, "")
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

func startStore(tb testing.TB, l *lab.Lab) *lab.Store {
	tb.Helper()
	s, err := l.StartStore(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// run runs a command against a node and returns what it printed.
func run(tb testing.TB, n *lab.Node, args ...string) string {
	tb.Helper()
	out, err := n.Run(tb.Context(), args...)
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(out)
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
		run(b, founder(b, l, ""), "image", "import", "disk", random(b, dir, pullSize))
		second := another(b, l, "a")
		empty := anonymous(b, second)
		run(b, second, "image", "warm", "disk")
		if err := second.Stop(); err != nil {
			b.Fatal(err)
		}
		if err := second.Restart(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.Logf("memory of a node: %.1f MiB with an empty cache, %.1f MiB restarted with 1 GiB cached", float64(empty)/(1<<20), float64(anonymous(b, second))/(1<<20))
	}
}

const (
	// idleFor is how long a node that has nothing to do is watched, in one round.
	idleFor = 10 * time.Second
	// idleMost is what it took of a core at the last measurement, in ms a second.
	idleMost = 5
)

// BenchmarkIdle says what nodes of one farm take that nobody asks anything.
func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		l := newLab(b, b.TempDir())
		founder(b, l, "")
		n := another(b, l, "a")
		var taken []float64
		for range rounds {
			before := cpuSeconds(b, n)
			<-time.After(idleFor)
			taken = append(taken, 1e3*(cpuSeconds(b, n)-before)/idleFor.Seconds())
		}
		atMost(b, "a node that idles", "CPU-ms/s", median(taken), idleMost)
	}
}

// cpuSeconds is what a node's process has taken so far.
func cpuSeconds(b *testing.B, n *lab.Node) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID()))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // from the state on
	var ticks float64
	for _, field := range f[11:13] { // user and system
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return ticks / 100 // a second, on every Linux
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
