package bench

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

const (
	// manyVolumes are registered on a node, and manyAttached of them served.
	manyVolumes, manyAttached = 1000, 200
	// manyEnds are the first and the last ones, which are made one by one.
	manyEnds = 20
	// manyIdle is how long it is watched.
	manyIdle = time.Minute
	// manyCPU is what it may take of a core, in CPU-ms a second; manyMemory, in MiB, is twice
	// what it took at the last measurement, and manyRequests, a minute, a look at each record
	// in ten minutes and what an empty node asks.
	manyCPU, manyMemory, manyRequests = 20, 64, 30
)

// counter counts the requests that reach a store through a front.
type counter struct{ n atomic.Int64 }

func (c *counter) pass(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
	c.n.Add(1)
	store.ServeHTTP(w, r)
}

// watched is a node, and a count of its requests to the origin.
type watched struct {
	*lab.Node
	requests counter
}

func watchedNode(b *testing.B, l *lab.Lab, s *lab.Store) *watched {
	b.Helper()
	f, err := s.Front(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	w := &watched{}
	f.Meddle(w.requests.pass)
	if w.Node, err = l.Start(b.Context(), "a", f.URL); err != nil {
		b.Fatal(err)
	}
	return w
}

// call asks the node's API for what must succeed.
func (w *watched) call(b *testing.B, method, path, body string) error {
	return asks(b, w.Node, method, path, body)
}

// msOf returns how long something takes that must succeed, in ms.
func msOf(b *testing.B, do func() error) float64 {
	b.Helper()
	began := time.Now()
	if err := do(); err != nil {
		b.Fatal(err)
	}
	return float64(time.Since(began).Microseconds()) / 1e3
}

func manyName(i int) string { return fmt.Sprintf("disk-%04d", i) }

func (w *watched) create(b *testing.B, i int) error {
	return w.call(b, http.MethodPut, "/api/volumes/"+manyName(i), `{"size": 1073741824, "transport": "nbd"}`)
}

// BenchmarkManyVolumes says what a node takes that has 1,000 volumes and serves 200 of
// them, each with something that is not folded, beside one of its farm that has none.
func BenchmarkManyVolumes(b *testing.B) {
	for b.Loop() {
		l := newLab(b, b.TempDir())
		s := startStore(b, l)
		empty, many := watchedNode(b, l, s), watchedNode(b, l, s)
		first, last := makeMany(b, many)
		atMost(b, "the last of 1,000 creates, the first ones' × 1.5", "ms", median(last), 1.5*median(first))
		for name, w := range map[string]*watched{"an empty node": empty, "with 1,000 volumes, 200 served": many} {
			stop, start := msOf(b, w.Stop), msOf(b, func() error { return w.Restart(b.Context()) })
			b.Logf("%s: %.0f ms to stop, %.0f ms to start", name, stop, start)
		}
		served(b, many)
		list := func(w *watched) (ms float64, requests int64) {
			before := w.requests.n.Load()
			ms = msOf(b, func() error { return w.call(b, http.MethodGet, "/api/volumes?all=true", "") })
			return ms, w.requests.n.Load() - before
		}
		cold, reads := list(empty)
		warm, asks := list(empty)
		b.Logf("a list of 1,000 volumes by another node: %.0f ms and %d requests to the origin; again %.0f ms and %d", cold, reads, warm, asks)
		idleMany(b, empty, many)
	}
}

// makeMany makes the volumes, and returns how long the first and the last took.
func makeMany(b *testing.B, w *watched) (first, last []float64) {
	b.Helper()
	for i := range manyEnds {
		first = append(first, msOf(b, func() error { return w.create(b, i) }))
	}
	atOnce(b, manyEnds, manyVolumes-manyEnds, func(i int) error { return w.create(b, i) })
	for i := manyVolumes - manyEnds; i < manyVolumes; i++ {
		last = append(last, msOf(b, func() error { return w.create(b, i) }))
	}
	atOnce(b, manyAttached, manyVolumes, func(i int) error {
		return w.call(b, http.MethodPost, "/api/volumes/"+manyName(i)+"/detach", "")
	})
	some := filepath.Join(b.TempDir(), "some.raw")
	if err := os.WriteFile(some, slices.Repeat([]byte("sixteen letters "), 1<<16), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, v := range served(b, w) {
		if out, err := exec.Command("nbdcopy", "--", some, v.Device).CombinedOutput(); err != nil {
			b.Fatalf("%s: %v: %s", v.Device, err, out)
		}
	}
	return first, last
}

// atOnce does something for each number, some at a time.
func atOnce(b *testing.B, from, to int, do func(i int) error) {
	b.Helper()
	var group errgroup.Group
	group.SetLimit(8)
	for i := from; i < to; i++ {
		group.Go(func() error { return do(i) })
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
}

// served returns the volumes that a node serves, which must be as many as it should.
func served(b *testing.B, w *watched) (out []api.Volume) {
	b.Helper()
	_, answer, err := w.Ask(b.Context(), http.MethodGet, "/api/volumes", "")
	var all []api.Volume
	if err == nil {
		err = json.Unmarshal(answer, &all)
	}
	for _, v := range all {
		if v.State == "attached" {
			out = append(out, v)
		}
	}
	if err != nil || len(all) != manyVolumes || len(out) != manyAttached {
		b.Fatalf("%d volumes, %d attached: %v", len(all), len(out), err)
	}
	return out
}

// idleMany watches both nodes while nobody asks anything of them.
func idleMany(b *testing.B, empty, many *watched) {
	b.Helper()
	nodes := []*watched{empty, many}
	var cpu, requests [2]float64
	for i, n := range nodes {
		cpu[i], requests[i] = cpuSeconds(b, n.Node), float64(n.requests.n.Load())
	}
	<-time.After(manyIdle)
	for i, n := range nodes {
		cpu[i], requests[i] = cpuSeconds(b, n.Node)-cpu[i], float64(n.requests.n.Load())-requests[i]
	}
	b.Logf("an empty node: %.2f CPU-s and %.0f requests to the origin a minute, %.1f MiB", cpu[0], requests[0], float64(anonymous(b, empty.Node))/(1<<20))
	atMost(b, "idle with 1,000 volumes, 200 served", "CPU-ms/s", 1e3*cpu[1]/manyIdle.Seconds(), manyCPU)
	atMost(b, "memory of it", "MiB", float64(anonymous(b, many.Node))/(1<<20), manyMemory)
	atMost(b, "its requests to the origin", "a minute", requests[1], manyRequests)
}
