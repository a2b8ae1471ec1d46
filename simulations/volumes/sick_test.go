package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/simulations/guest"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// illness is a way in which a store does not do what it should.
type illness struct {
	name   string
	meddle lab.Meddler
}

// late is how long an ill store takes for each request.
const late = 500 * time.Millisecond

// illnesses are those of S3 servers.
func illnesses() []illness {
	var count atomic.Int64
	other := func() bool { return count.Add(1)%2 == 0 }
	slow := func(r *http.Request) {
		select {
		case <-time.After(late):
		case <-r.Context().Done():
		}
	}
	return []illness{
		{"it is late and loses every other request", func(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
			if slow(r); other() {
				panic(http.ErrAbortHandler)
			}
			store.ServeHTTP(w, r)
		}},
		{"it is late and loses every other reply", func(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
			if slow(r); other() {
				store.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
			store.ServeHTTP(w, r)
		}},
		{"it is throttled", func(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
			if other() {
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprint(w, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
				return
			}
			store.ServeHTTP(w, r)
		}},
		{"it is down", func(string, http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }},
	}
}

// patient is a volume of a farm with a sick store: what is written to it, and what it had
// before.
type patient struct {
	name   string
	shadow *guest.Shadow // nil of the one that fio works on
	work   *guest.Work
	fio    *verifying
	epoch  uint64
}

// admit makes two volumes of a policy, one for fio and one with a shadow.
func (f *farm) admit(n *lab.Node, policy string) []*patient {
	f.Helper()
	name := strings.ReplaceAll(policy, ":", "")
	a, b := &patient{name: name}, &patient{name: name + "-fio"}
	a.shadow = openShadow(f.T, f.create(n, a.name, "--size", "4MiB", "--durability", policy))
	a.work = begun(f.T, a.name, a.shadow.Step)
	b.fio = verifies(f.T, f.create(n, b.name, "--size", "16MiB", "--durability", policy), "16m", "--rate_iops=200,200")
	for _, p := range []*patient{a, b} {
		p.epoch = f.volume(n, p.name).Epoch
	}
	return []*patient{a, b}
}

// TestGuestsAtASickStore has guests write under local and farm:2, and their node fold,
// while the store is ill in each way: they go on, no volume is thought to be another's,
// what the bucket has not is told, and all of it comes there once the store is well.
func TestGuestsAtASickStore(t *testing.T) {
	f := quietFarm(t, 3)
	n := f.nodes[0]
	patients := append(f.admit(n, "local"), f.admit(n, "farm:2")...)
	span := soak.Of(5*time.Second, time.Minute)
	for _, ill := range illnesses() {
		f.front.Meddle(ill.meddle)
		done, failed := f.suffer(n, patients, span)
		f.front.Meddle(nil)
		t.Logf("%s, for %s: %d snapshots became durable, %d did not", ill.name, span, done, failed)
		if t.Failed() {
			return
		}
	}
	for _, p := range patients {
		if p.fio != nil {
			if err := p.fio.end(); err != nil {
				t.Errorf("%s: %v", p.name, err)
			}
		} else if err := errors.Join(p.work.Stop(), p.shadow.Check()); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		var id string
		until(t, "a snapshot of "+p.name+" is in the bucket", func(ctx context.Context) (ok bool) { // once the origin was seen to be back
			said, err := n.Run(ctx, "volume", "snapshot", p.name, "--wait", "durable")
			id = strings.TrimSpace(said)
			return err == nil
		})
		until(t, p.name+" is in the bucket", func(context.Context) bool {
			v := f.volume(n, p.name)
			return v.Lag == 0 && !v.FoldedAt.IsZero()
		})
		if p.shadow != nil && !bytes.Equal(f.exported(f.nodes[1], "snapshot:"+id), p.shadow.Want()) {
			t.Errorf("%s has other bytes on another node", p.name)
		}
		if v := f.volume(n, p.name); v.State != terms.StateAttached || v.Epoch != p.epoch || !v.Degraded.IsZero() {
			t.Errorf("%s is %+v, and had epoch %d", p.name, v, p.epoch)
		}
	}
	if said := n.Tail(1 << 20); strings.Contains(said, "taken away") || strings.Contains(said, "fenced") {
		t.Errorf("the node says: %s", said)
	}
}

// TestWhatWasWrittenHereIsReadHere has a volume's bytes moved into chunks of the bucket and
// cut from its journal, and the bucket keep them: the node that made the chunks has them,
// and its farm reads them from there.
func TestWhatWasWrittenHereIsReadHere(t *testing.T) {
	f := quietFarm(t, 2)
	c := f.dial(f.create(f.nodes[0], "web", "--size", "4MiB"))
	want := make([]byte, c.size)
	rand.NewChaCha8([32]byte{}).Read(want)
	if err := errors.Join(c.write(want, 0), c.flush()); err != nil {
		t.Fatal(err)
	}
	c.conn.Close()
	f.run(f.nodes[0], "volume", "detach", "web")
	f.front.Meddle(func(key string, w http.ResponseWriter, r *http.Request, store http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(key, "packs/") {
			panic(http.ErrAbortHandler)
		}
		store.ServeHTTP(w, r)
	})
	for _, n := range f.nodes {
		c = f.dial(f.create(n, "web"))
		got := make([]byte, len(want))
		if err := c.read(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s has other bytes, or none: %v", n.Name, err)
		}
		if v := f.volume(n, "web"); v.Bytes.Origin != 0 || v.DirtyBytes != 0 {
			t.Errorf("%s has read %d bytes from the bucket, and has %d in the journal: %+v", n.Name, v.Bytes.Origin, v.DirtyBytes, v)
		}
		c.conn.Close()
		f.run(n, "volume", "detach", "web")
	}
}

// nothingLags reports whether volume show says it of a volume all of which is in the bucket.
func nothingLags(shown string) bool {
	return regexp.MustCompile(`not in bucket +0 `).MatchString(shown)
}

// suffer folds each volume again and again for a span, looks at how it stands meanwhile,
// and counts the snapshots that became durable, and those that did not in time.
func (f *farm) suffer(n *lab.Node, patients []*patient, span time.Duration) (done, failed int64) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), span)
	defer cancel()
	var folds sync.WaitGroup
	var durable, not atomic.Int64
	for _, p := range patients {
		folds.Go(func() {
			for ctx.Err() == nil {
				_, err := n.Run(ctx, "volume", "snapshot", p.name, "--wait", "durable")
				switch {
				case err == nil:
					durable.Add(1)
				case strings.Contains(err.Error(), "fenced") || strings.Contains(err.Error(), "taken"):
					f.Errorf("%s: %v", p.name, err)
				default:
					not.Add(1)
				}
			}
		})
	}
	lagged := false
	for ctx.Err() == nil {
		for _, p := range patients {
			if p.work != nil {
				goesOn(f.T, p.work, 20)
			}
			v := f.volume(n, p.name)
			if v.State != terms.StateAttached || v.Epoch != p.epoch {
				f.Errorf("%s is %s, of epoch %d: %s", p.name, v.State, v.Epoch, v.Detail)
			}
			metric, err := n.Metric(f.Context(), "grange_volumes_lag_bytes")
			if err != nil {
				f.Fatal(err)
			}
			lagged = lagged || v.Lag > 0 && metric > 0 && !nothingLags(f.run(n, "volume", "show", p.name))
		}
	}
	folds.Wait()
	if !lagged {
		f.Error("nobody says that the bucket has not all of it")
	}
	return durable.Load(), not.Load()
}
