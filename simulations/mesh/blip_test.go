package mesh

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// outages are what a store does that is there and does not serve. Requests that came
// meanwhile stay as they are when it is back.
func outages() map[string]lab.Meddler {
	return map[string]lab.Meddler{
		"answers 503": func(_ string, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, "<Error><Code>ServiceUnavailable</Code><Message>Back soon.</Message></Error>")
		},
		"resets": func(_ string, w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		},
		"hangs": func(_ string, _ http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
		"stops in the middle": func(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
			answer := httptest.NewRecorder()
			store.ServeHTTP(answer, r)
			for name, values := range answer.Header() {
				w.Header()[name] = values
			}
			w.WriteHeader(answer.Code)
			w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	}
}

// readRange reads a range of a device as a guest does.
func readRange(ctx context.Context, device string, off, length int64) error {
	out, err := exec.CommandContext(ctx, "qemu-io", "-r", "-f", "raw", "-c", fmt.Sprintf("read %d %d", off, length), device).CombinedOutput()
	if err != nil || !strings.Contains(string(out), fmt.Sprintf("read %d/%d bytes", length, length)) {
		return fmt.Errorf("read at %d: %w: %s", off, err, out)
	}
	return nil
}

// TestGuestsOutliveTheStoresBlips reads from a cold node while its store, which alone
// has the bytes, fails in each way. No read fails, the volume says what it waits for,
// and when the store is back it is found so at once. Then the store hangs for good, and
// what another member has is read from there.
func TestGuestsOutliveTheStoresBlips(t *testing.T) {
	const region = 4 << 20
	spans := []time.Duration{time.Second, 5 * time.Second}
	if soak.Full() {
		spans = append(spans, time.Minute, 2*time.Minute)
	}
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "a")
	holder, cold := nodes[0], nodes[1]
	ways := outages()
	path, sum := disk(t, l.Dir, int64(8<<20*(len(ways)*len(spans)+2)))
	run(t, holder, "image", "import", "disk", path)
	if err := holder.Kill(); err != nil {
		t.Fatal(err)
	}
	device := run(t, cold, "volume", "create", "v", "--from", "image:disk")
	off := int64(1 << 20) // the first of each eight are a hole
	for name, meddle := range ways {
		for _, span := range spans {
			outlive(t, cold, store, outage{name, meddle, span}, func(ctx context.Context) error { return readRange(ctx, device, off, region) })
			off += 8 << 20
		}
	}
	if n := metric(t, cold, "grange_fetch_waiting_reads"); n != 0 {
		t.Errorf("%v reads wait still", n)
	}
	if err := holder.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the holder is back", func(ctx context.Context) bool { return len(get[api.Peers](t, cold, "/api/peers").Peers) > 0 })
	store.Meddle(ways["hangs"])
	if err := readRange(t.Context(), device, off, region); err != nil {
		t.Errorf("what another member has: %v", err)
	}
	store.Meddle(nil)
	if got, err := read(t.Context(), cold, "w", "disk"); err != nil || got != sum {
		t.Errorf("read in the end: %v, or other bytes", err)
	}
}

// outage is one of a store.
type outage struct {
	name   string
	meddle lab.Meddler
	span   time.Duration
}

// outlive lets a guest read through an outage. Beyond that the read gets the two seconds
// that it may take to find the store back, and some for a busy machine.
func outlive(t *testing.T, n *lab.Node, store *lab.Front, o outage, read func(context.Context) error) {
	t.Helper()
	const back, busy = 2 * time.Second, 5 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), o.span+back+busy)
	defer cancel()
	store.Meddle(o.meddle)
	began := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- read(ctx) }()
	select {
	case err := <-ended:
		t.Errorf("%s: the read has ended while only the store has its bytes: %v", o.name, err)
		ended <- nil
	case <-time.After(o.span):
	}
	if v := volume(t, n, "v"); o.span >= 5*time.Second && !strings.Contains(o.name, "hang") && !strings.Contains(o.name, "middle") && !strings.Contains(v.Detail, "wait") {
		t.Errorf("%s: the volume is %s: %q, want it to say what it waits for", o.name, v.State, v.Detail)
	}
	store.Meddle(nil)
	if err := <-ended; err != nil {
		t.Errorf("%s for %s: %v", o.name, o.span, err)
	}
	t.Logf("%s for %s: the read took %s longer", o.name, o.span, (time.Since(began) - o.span).Round(time.Millisecond))
}
