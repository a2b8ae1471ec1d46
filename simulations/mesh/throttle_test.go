package mesh

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/simulations/lab"
)

// TestThrottlingStore: the store alone has an image, and refuses more than some requests a
// second. All is read whole, the nodes slow down, and none takes the store for away.
func TestThrottlingStore(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "b", "b")
	importer, readers := nodes[0], nodes[1:]
	path, sum := disk(t, l.Dir, 32<<20)
	run(t, importer, "image", "import", "disk", path)
	for _, n := range readers {
		run(t, n, "resolve", "disk")
	}
	if err := importer.Stop(); err != nil { // the store alone has it
		t.Fatal(err)
	}
	const takes = 12 // a second
	limit := rate.NewLimiter(takes, 3)
	var passed, refused atomic.Int64
	store.Meddle(func(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
		if limit.Allow() {
			passed.Add(1)
			store.ServeHTTP(w, r)
			return
		}
		refused.Add(1)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
	})
	watching, done := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	for _, n := range readers {
		watch.Go(func() { staysWell(watching, t, n) })
	}
	began := time.Now()
	readAll(t, readers, "cold", "disk", sum)
	took := time.Since(began)
	done()
	watch.Wait()
	told := metric(t, readers[0], "grange_origin_throttled_total") + metric(t, readers[1], "grange_origin_throttled_total")
	t.Logf("read in %s: the store took %d requests and refused %d, of which the nodes noted %v", took.Round(time.Millisecond), passed.Load(), refused.Load(), told)
	if refused.Load() == 0 || told == 0 {
		t.Errorf("%d requests were refused, %v by the nodes' word", refused.Load(), told)
	}
	if refused.Load() > passed.Load() {
		t.Error("the nodes did not slow down")
	}
}

// staysWell looks at what a node says of the store until ctx ends.
func staysWell(ctx context.Context, t *testing.T, n *lab.Node) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if s, err := n.Status(ctx); err == nil && s.Origin.State != "ok" {
				t.Errorf("%s takes the store for %s: %s", n.Name, s.Origin.State, s.Origin.Detail)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
