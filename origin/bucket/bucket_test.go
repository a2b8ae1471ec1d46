package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lenient keeps complaints about keys to itself: the suite means them.
type lenient struct{ *testing.T }

func (l lenient) Errorf(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !bytes.Contains([]byte(text), []byte(content.ErrInvalid.Error())) {
		l.T.Errorf("%s", text)
	}
}

// TestTheStackKeepsTheContract runs the suite on a store that fails every second
// call, not applied or applied, under all decorators.
func TestTheStackKeepsTheContract(t *testing.T) {
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied %t", applied), func(t *testing.T) {
			contract(t, func(t *testing.T) bucket.Bucket {
				var n atomic.Int64
				store := mem.New(lenient{t}, mem.Config{Fault: func(c mem.Call) mem.Fault {
					switch {
					case n.Add(1)%2 == 0:
						return mem.Fault{}
					case !c.Cond.IsZero(): // may only be repeated when it did nothing
						return mem.Fault{Err: bucket.ErrBusy}
					}
					contended := strings.HasPrefix(c.Key, "records/") // where applied twice would show
					return mem.Fault{Err: bucket.ErrUnknown, Applied: applied && !contended}
				}})
				b := bucket.Breaker(store)
				b = bucket.Limit(b, budget.New(budget.Limits{Requests: 1e9, Bytes: 1 << 40}))
				b = bucket.Retry(b, bucket.RetryConfig{Tries: 50, Wait: time.Microsecond})
				return bucket.WithMetrics(bucket.Mirrors(b))
			})
		})
	}
}

func put(t *testing.T, b bucket.Bucket, key, data string) {
	t.Helper()
	if _, err := b.Put(t.Context(), key, bucket.Bytes([]byte(data)), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
}

func TestConditionalWritesAreSentAgainOnlyWhenNothingWasDone(t *testing.T) {
	for _, c := range []struct {
		fault error
		sent  int
	}{{bucket.ErrUnknown, 1}, {content.ErrUnavailable, 1}, {bucket.ErrBusy, 3}, {content.ErrForbidden, 1}} {
		for _, cond := range []bucket.Condition{bucket.IfAbsent(), bucket.IfMatch(`"x"`)} {
			store := mem.New(t, mem.Config{Fault: func(mem.Call) mem.Fault { return mem.Fault{Err: c.fault} }})
			b := bucket.Retry(store, bucket.RetryConfig{Tries: 3, Wait: time.Microsecond})
			_, err := b.Put(t.Context(), "records/a", bucket.Bytes(nil), cond)
			wantErr(t, err, c.fault)
			if sent := store.Count(mem.Put); sent != c.sent {
				t.Errorf("%v: sent %d times, want %d", c.fault, sent, c.sent)
			}
		}
	}
}

func TestABodyThatChangesIsNotResumed(t *testing.T) {
	cut := true
	store := mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
		if c.Op == mem.Get && cut {
			return mem.Fault{Err: content.ErrUnavailable, Applied: true}
		}
		return mem.Fault{}
	}})
	b := bucket.Retry(store, bucket.RetryConfig{Wait: time.Microsecond})
	put(t, b, "records/a", "12345678")
	o, err := b.Get(t.Context(), "records/a", bucket.Range{})
	if err != nil {
		t.Fatal(err)
	}
	cut = false
	put(t, b, "records/a", "abcdefgh")
	got, err := io.ReadAll(o.Body)
	wantErr(t, err, content.ErrUnavailable)
	if string(got) != "1234" {
		t.Errorf("read %q, a mix of two versions", got)
	}
	if n, err := o.Body.Read(make([]byte, 8)); n > 0 || !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("read on: %d bytes of another version, %v", n, err)
	}
	if err := o.Body.Close(); err != nil {
		t.Error(err)
	}
}

// TestALongListMeetsManyFailures loses more replies than a request has tries, to a
// consumer that is slower than all tries may take.
func TestALongListMeetsManyFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total, tries = 5000, 2
		cuts := 3 * tries
		store := mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
			if c.Op == mem.List && cuts > 0 {
				cuts--
				return mem.Fault{Err: content.ErrUnavailable, Applied: true}
			}
			return mem.Fault{}
		}})
		for i := range total {
			put(t, store, fmt.Sprintf("many/%05d", i), "")
		}
		b, n := bucket.Retry(store, bucket.RetryConfig{Tries: tries}), 0
		for info, err := range b.List(t.Context(), "many/", "") {
			if err != nil || info.Key != fmt.Sprintf("many/%05d", n) {
				t.Fatalf("%d: %s, %v", n, info.Key, err)
			}
			n++
			<-time.After(time.Second)
		}
		if n != total || cuts != 0 {
			t.Errorf("%d of %d objects were listed, %d cuts are left", n, total, cuts)
		}
	})
}

func TestACallersEndEndsRetries(t *testing.T) {
	store := mem.New(t, mem.Config{Fault: func(mem.Call) mem.Fault { return mem.Fault{Err: bucket.ErrBusy} }})
	b := bucket.Retry(store, bucket.RetryConfig{Wait: time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := b.Put(ctx, "a", bucket.Bytes(nil), bucket.IfAbsent())
	wantErr(t, err, bucket.ErrBusy)
	wantErr(t, err, context.DeadlineExceeded)
}

func TestABreakerLeavesAFailingStoreAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fault error
		store := mem.New(t, mem.Config{Fault: func(mem.Call) mem.Fault { return mem.Fault{Err: fault} }})
		b := bucket.Breaker(store)
		get := func() error {
			_, _, err := bucket.ReadAll(t.Context(), b, "a", 10)
			return err
		}
		list := func() (err error) {
			for _, err = range b.List(t.Context(), "", "") {
			}
			return err
		}
		put(t, b, "a", "x")
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for range 10 { // neither refusals nor callers that went away count
			fault = content.ErrForbidden
			wantErr(t, get(), content.ErrForbidden)
			_, err := b.Get(gone, "a", bucket.Range{})
			wantErr(t, err, context.Canceled)
		}
		fault = content.ErrUnavailable
		calls := []func() error{get, list, func() error { return b.Delete(t.Context(), "a") }}
		for i := range 8 {
			if err := calls[i%len(calls)](); !errors.Is(err, content.ErrUnavailable) || errors.Is(err, bucket.ErrOpen) {
				t.Fatal(err)
			}
		}
		asked := store.Count(mem.Get) + store.Count(mem.List)
		wantErr(t, get(), bucket.ErrOpen)
		wantErr(t, list(), bucket.ErrOpen)
		_, err := bucket.Retry(b, bucket.RetryConfig{Tries: 5, Wait: 10 * time.Millisecond}).Get(t.Context(), "a", bucket.Range{})
		wantErr(t, err, bucket.ErrOpen)
		if now := store.Count(mem.Get) + store.Count(mem.List); now != asked {
			t.Fatalf("the store was asked %d times more", now-asked)
		}
		fault = nil
		<-time.After(time.Second)
		for range 3 {
			if err := get(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mem.New(t, mem.Config{})
		put(t, store, "packs/a", string(make([]byte, 8<<20)))
		read := func(b bucket.Bucket, n int) time.Duration {
			start := time.Now()
			for range n {
				if _, _, err := bucket.ReadAll(t.Context(), b, "packs/a", 8<<20); err != nil {
					t.Fatal(err)
				}
			}
			return time.Since(start)
		}
		if took := read(bucket.Limit(store, budget.New(budget.Limits{})), 5); took != 0 {
			t.Errorf("no limit took %s", took)
		}
		if took := read(bucket.Limit(store, budget.New(budget.Limits{Bytes: 4 << 20})), 3); took < 4900*time.Millisecond || took > 5100*time.Millisecond {
			t.Errorf("24 MiB at 4 MiB/s, 4 of them at once, took %s", took)
		}
		b := bucket.Limit(store, budget.New(budget.Limits{Requests: 2}))
		if took := read(b, 6); took != 2*time.Second {
			t.Errorf("6 requests at 2 a second, 2 of them at once, took %s", took)
		}
		start := time.Now()
		for range 10 { // writes are not held up, reads wait for them
			put(t, b, "records/a", "x")
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("writes were held up for %s", took)
		}
		if took := read(b, 1); took < 5*time.Second {
			t.Errorf("a read behind 10 writes took %s", took)
		}
	})
}

func TestMetricsCountWhatCrossesTheLine(t *testing.T) {
	store := mem.New(t, mem.Config{})
	m := bucket.WithMetrics(store)
	for i := range bucket.PageSize + 1 {
		put(t, store, fmt.Sprintf("many/%d", i), "")
	}
	put(t, m, "records/a", "12345")
	if _, err := m.Put(t.Context(), "records/a", bucket.Bytes([]byte("123")), bucket.IfAbsent()); !errors.Is(err, bucket.ErrPrecondition) {
		t.Fatal(err)
	}
	o, err := m.Get(t.Context(), "records/a", bucket.Range{Offset: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(o.Body); err != nil || o.Body.Close() != nil {
		t.Fatal(err)
	}
	_, err = m.Get(t.Context(), "none", bucket.Range{})
	wantErr(t, err, content.ErrNotFound)
	for range m.List(t.Context(), "many/", "") {
	}
	if got, want := m.Counts(), (bucket.Counts{Requests: 6, BytesIn: 4, BytesOut: 8}); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, x := range f.Metric {
			name := f.GetName()
			for _, l := range x.Label {
				name += " " + l.GetValue()
			}
			got[name] = x.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"grange_bucket_requests_total get ok": 1, "grange_bucket_requests_total get not_found": 1, "grange_bucket_requests_total list ok": 2,
		"grange_bucket_requests_total put precondition": 1, "grange_bucket_bytes_total get ok": 4, "grange_bucket_bytes_total put ok": 5,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

func TestMirrorsAnswerForWhatDoesNotChange(t *testing.T) {
	away := true
	truth := mem.New(t, mem.Config{Fault: func(mem.Call) mem.Fault {
		if away {
			return mem.Fault{Err: content.ErrUnavailable}
		}
		return mem.Fault{}
	}})
	empty, mirror := mem.New(t, mem.Config{}), mem.New(t, mem.Config{})
	put(t, mirror, "packs/a", "pack")
	put(t, mirror, "records/a", "an old record")
	b := bucket.Mirrors(truth, empty, mirror)
	if got, _, err := bucket.ReadAll(t.Context(), b, "packs/a", 10); err != nil || string(got) != "pack" {
		t.Errorf("%q, %v", got, err)
	}
	_, _, err := bucket.ReadAll(t.Context(), b, "records/a", 100)
	wantErr(t, err, content.ErrUnavailable)
	away = false
	_, _, err = bucket.ReadAll(t.Context(), b, "packs/a", 10)
	wantErr(t, err, content.ErrNotFound)
}

func TestAProbeThatMayNotWriteSaysReadOnly(t *testing.T) {
	reader := mem.New(t, mem.Config{Fault: func(mem.Call) mem.Fault { return mem.Fault{Err: content.ErrForbidden} }})
	err := bucket.Probe(t.Context(), reader)
	wantErr(t, err, content.ErrReadOnly)
	wantErr(t, err, content.ErrForbidden) // which says what to grant
}

func TestAProbeLeavesNothing(t *testing.T) {
	store := mem.New(t, mem.Config{})
	if err := bucket.Probe(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	if left := store.Keys(""); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	for _, fault := range []error{content.ErrUnavailable, content.ErrForbidden, content.ErrReadOnly, bucket.ErrUnknown} {
		n := 0
		broken := mem.New(t, mem.Config{Fault: func(mem.Call) mem.Fault {
			if n++; n == 1 || n == 3 {
				return mem.Fault{Err: fault}
			}
			return mem.Fault{}
		}})
		wantErr(t, bucket.Probe(t.Context(), broken), fault)
		wantErr(t, bucket.Probe(t.Context(), broken), fault)
	}
}

// careless ignores conditions, as some stores do.
type careless struct{ bucket.Bucket }

func (c careless) Put(ctx context.Context, key string, body bucket.Body, _ bucket.Condition) (bucket.Info, error) {
	return c.Bucket.Put(ctx, key, body, bucket.Condition{})
}

func TestACarelessStoreIsRefused(t *testing.T) {
	wantErr(t, bucket.Probe(t.Context(), careless{mem.New(t, mem.Config{})}), content.ErrReadOnly)
}
