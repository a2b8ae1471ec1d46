package volumes

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestFarmSurvivesItsWriter: under farm:2 the node that writes a volume is killed under
// load, and its folder removed; another one takes the volume over and has each flush that
// was acknowledged, with none of it in the bucket. So it goes on, twice: the second time
// from a holder that has come since.
func TestFarmSurvivesItsWriter(t *testing.T) {
	f := newFarm(t, 4)
	const size = 4 << 20
	w := newWriter(size, 7)
	device := f.create(f.nodes[0], "web", "--size", "4MiB", "--durability", "farm:2")
	for i, next := range f.nodes[1:3] {
		victim := f.nodes[i]
		f.writeUntil(w, device, 20, func() error {
			if err := victim.Kill(); err != nil {
				return err
			}
			return os.RemoveAll(victim.Data)
		})
		device = f.run(next, "volume", "attach", "web", "--takeover", "--transport", "nbd")
		disk := f.contents(device)
		if err := w.lost(disk); err != nil {
			t.Fatalf("takeover %d, after %d flushes: %v", i+1, w.flush, err)
		}
		w.seen(disk)
	}
}

// held says which nodes that run hold what a volume of a node writes, and which do not.
func (f *farm) held(n *lab.Node, name string) (by, others []*lab.Node) {
	f.Helper()
	ids := f.volume(n, name).Holders
	for _, other := range f.nodes {
		switch st, err := other.Status(f.Context()); {
		case err != nil:
		case slices.Contains(ids, st.Self.ID):
			by = append(by, other)
		case other != n:
			others = append(others, other)
		}
	}
	if len(by) == 0 {
		f.Fatalf("nobody holds %s: %q", name, ids)
	}
	return by, others
}

// load is a writer that goes on beside the test.
type load struct {
	*writer
	flushes atomic.Int64
	ended   chan error
	client  *client
}

// load has a writer write until its connection ends.
func (f *farm) load(w *writer, device string) *load {
	f.Helper()
	l := &load{writer: w, ended: make(chan error, 1), client: f.dial(device)}
	go func() { l.ended <- w.run(l.client, func(n int) { l.flushes.Store(int64(n)) }) }()
	return l
}

// more waits until so many more flushes are acknowledged.
func (f *farm) more(l *load, n int64) {
	f.Helper()
	want := l.flushes.Load() + n
	until(f.T, "more flushes are acknowledged", func(context.Context) bool {
		select {
		case err := <-l.ended:
			f.Fatalf("after %d flushes: %v", l.flushes.Load(), err)
		default:
		}
		return l.flushes.Load() >= want
	})
}

// end ends the load; what it was doing may be done or not.
func (l *load) end() { l.client.conn.Close(); <-l.ended }

// refuse has the origin answer no request of some hosts, of none for nil.
func (f *farm) refuse(whose func(address string) bool) {
	f.front.Meddle(func(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
		if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil && whose != nil && whose(host) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		store.ServeHTTP(w, r)
	})
}

// TestHolderReplacedWithTheOriginAway: a holder ends under load while the origin is away.
// Nothing is acknowledged until the record says who holds the volume now; once it can, the
// guest goes on, without an error, and who takes the volume over when its node is gone has
// each flush that was acknowledged.
func TestHolderReplacedWithTheOriginAway(t *testing.T) {
	f := newFarm(t, 5)
	writer := f.nodes[1]
	l := f.load(newWriter(1<<20, 3), f.create(writer, "web", "--size", "1MiB", "--durability", "farm:2"))
	f.more(l, 20)
	by, _ := f.held(writer, "web")
	victim := by[slices.IndexFunc(by, func(n *lab.Node) bool { return n != f.nodes[0] })]
	f.refuse(func(string) bool { return true })
	f.more(l, 20) // which needs no origin
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	at := l.flushes.Load()
	select {
	case err := <-l.ended:
		t.Fatalf("with the origin away: %v", err)
	case <-time.After(12 * time.Second):
	}
	if now := l.flushes.Load(); now > at+1 { // one may have been on its way
		t.Errorf("%d flushes are acknowledged, and no record says who holds them", now-at)
	}
	f.refuse(nil)
	f.more(l, 20)
	now, others := f.held(writer, "web")
	if len(now) != 2 {
		t.Errorf("it is held by %d that run", len(now))
	}
	if err := errors.Join(writer.Kill(), os.RemoveAll(writer.Data)); err != nil {
		t.Fatal(err)
	}
	l.end()
	if err := l.lost(f.contents(f.run(others[0], "volume", "attach", "web", "--takeover", "--transport", "nbd"))); err != nil {
		t.Errorf("after %d flushes: %v", l.flush, err)
	}
}

// TestWriterCutOffFromTheBucket: the writer reaches its holders and not the bucket, so that it
// goes on, until another node takes the volume over: that one has each flush that was ever
// acknowledged, and the old one acknowledges none any more.
func TestWriterCutOffFromTheBucket(t *testing.T) {
	f := newFarm(t, 4)
	writer, taker := f.nodes[1], f.nodes[2]
	l := f.load(newWriter(1<<20, 4), f.create(writer, "web", "--size", "1MiB", "--durability", "farm:2"))
	f.more(l, 20)
	f.refuse(func(address string) bool { return address == writer.Host.Addr().String() })
	f.more(l, 20)
	disk := f.contents(f.run(taker, "volume", "attach", "web", "--takeover", "--transport", "nbd"))
	select {
	case err := <-l.ended:
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the old node neither acknowledges nor refuses: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the old node acknowledges still")
	}
	if err := l.lost(disk); err != nil {
		t.Errorf("after %d flushes: %v", l.flush, err)
	}
}

// TestAloneThenTakenOver: with --degrade local the guest goes on though all holders are
// gone, once the record says so. A former holder that takes the volume over has what was
// acknowledged before, says since when there may be more and where, and the old node keeps
// all of that as an orphan.
func TestAloneThenTakenOver(t *testing.T) {
	f := newFarm(t, 4)
	writer := f.nodes[1]
	l := f.load(newWriter(1<<20, 5), f.create(writer, "web", "--size", "1MiB", "--durability", "farm:2", "--degrade", "local"))
	f.more(l, 20)
	by, others := f.held(writer, "web")
	epoch := f.volume(writer, "web").Epoch
	for _, n := range slices.Concat(others, by) {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	before := l.flushes.Load()
	f.more(l, 20)
	if v := f.volume(writer, "web"); v.Degraded.IsZero() {
		t.Errorf("%d flushes were acknowledged alone, and it says %+v", l.flushes.Load()-before, v)
	}
	if err := writer.Kill(); err != nil {
		t.Fatal(err)
	}
	l.end()
	for _, n := range slices.Concat(by, others) {
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var device string
	until(t, "a former holder takes it over", func(ctx context.Context) bool { // once it has found another one
		out, err := by[0].Run(ctx, "volume", "attach", "web", "--takeover", "--transport", "nbd")
		if err != nil && !strings.Contains(err.Error(), "try again when one is") {
			t.Fatal(err)
		}
		device = strings.TrimSpace(out)
		return err == nil
	})
	if v := f.volume(by[0], "web"); !strings.Contains(v.Detail, "orphan") || !v.Degraded.IsZero() {
		t.Errorf("what was acknowledged alone is not named: %+v", v)
	}
	if err := l.older().lost(f.contents(device)); err != nil {
		t.Error(err)
	}
	if err := writer.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := f.run(writer, "volume", "attach", "web", "--readonly", "--transport", "nbd")
	if err := l.lost(f.contents(left)); err != nil {
		t.Errorf("what stays behind, after %d flushes, %d of them with holders: %v", l.flush, before, err)
	}
	f.orphanOf(by[0], "web", epoch)
}

// TestHolderThatMissedASegment: of two holders one lacks a segment in the middle of what it
// had. While it alone is in reach nobody takes the volume over, and who does later has all
// from the other.
func TestHolderThatMissedASegment(t *testing.T) {
	f := newFarm(t, 5)
	writer := f.nodes[1]
	w := newWriter(1<<20, 6)
	device := f.create(writer, "web", "--size", "1MiB", "--durability", "farm:2")
	for range 3 { // each start of the node is an epoch, and so a segment
		f.writeUntil(w, device, 10, writer.Kill)
		if err := writer.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		device = f.volume(writer, "web").Device
		w.seen(f.contents(device))
	}
	l := f.load(w, device)
	f.more(l, 10)
	by, others := f.held(writer, "web")
	if err := writer.Kill(); err != nil {
		t.Fatal(err)
	}
	l.end()
	for _, n := range by {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	segments, err := filepath.Glob(filepath.Join(by[0].Data, "held", "*", "*.seg"))
	if err != nil || len(segments) < 3 {
		t.Fatalf("%q, %v", segments, err)
	}
	if err := errors.Join(os.Remove(segments[1]), by[0].Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	if out, err := others[0].Run(t.Context(), "volume", "attach", "web", "--takeover", "--transport", "nbd"); err == nil {
		t.Fatalf("taken over from who has not all: %s", out)
	} else {
		t.Log(err)
	}
	if err := by[1].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.lost(f.contents(f.run(others[0], "volume", "attach", "web", "--takeover", "--transport", "nbd"))); err != nil {
		t.Errorf("after %d flushes: %v", w.flush, err)
	}
}

// TestTakerIsKilled: a node that is about to take a volume over is killed, again and again
// at another moment, and the guest of who has it goes on without an error: no flush fails,
// and none is lost for who takes the volume over in the end.
func TestTakerIsKilled(t *testing.T) {
	f := newFarm(t, 4)
	writer, taker := f.nodes[1], f.nodes[2]
	l := f.load(newWriter(1<<20, 8), f.create(writer, "web", "--size", "1MiB", "--durability", "farm:2"))
	f.more(l, 20)
	promised := 0
	for range soak.Of(2, 20) {
		epoch := f.volume(writer, "web").Epoch
		f.front.Meddle(func(key string, w http.ResponseWriter, r *http.Request, store http.Handler) {
			if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil && host == taker.Host.Addr().String() && r.Method == http.MethodPut && strings.Contains(key, "volume") {
				<-r.Context().Done() // its record does not get there
				return
			}
			store.ServeHTTP(w, r)
		})
		attach, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := taker.Run(attach, "volume", "attach", "web", "--takeover", "--transport", "nbd")
			done <- err
		}()
		at := l.flushes.Load()
		select { // holders refuse the writer by then
		case err := <-l.ended:
			t.Fatalf("after %d flushes: %v", at, err)
		case <-time.After(2 * time.Second):
		}
		if err := taker.Kill(); err != nil {
			t.Fatal(err)
		}
		cancel()
		if <-done == nil {
			t.Fatal("it is taken over")
		}
		f.more(l, 20)
		f.front.Meddle(nil)
		if now := f.volume(writer, "web").Epoch; now > epoch {
			promised++
		}
		if err := taker.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if promised == 0 {
		t.Error("no holder had promised itself to who was killed")
	}
	disk := f.contents(f.run(taker, "volume", "attach", "web", "--takeover", "--transport", "nbd"))
	<-l.ended
	if err := l.lost(disk); err != nil {
		t.Errorf("after %d flushes: %v", l.flush, err)
	}
}
