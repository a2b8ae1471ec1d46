package bucket

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/origin/content"
)

// Metrics is a bucket that counts what passes through it: grange_bucket_*, by op
// and outcome. A list is one request for each PageSize objects.
type Metrics struct {
	inner
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec

	sent, in, out atomic.Int64
	// ahead is how far the store's clock was before this one when it answered last, in nanoseconds.
	ahead  atomic.Int64
	offset prometheus.GaugeFunc
}

// Counts are the sums since the bucket was built.
type Counts struct {
	Requests int64
	// BytesIn were read from the bucket, BytesOut written to it.
	BytesIn, BytesOut int64
}

// WithMetrics counts the requests and bytes of b.
func WithMetrics(b Bucket) *Metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "grange", Subsystem: "bucket", Name: name, Help: help}
	}
	m := &Metrics{
		inner:    inner{b},
		requests: prometheus.NewCounterVec(opts("requests_total", "Requests to the origin."), []string{"op", "outcome"}),
		bytes:    prometheus.NewCounterVec(opts("bytes_total", "Bytes read from the origin (get) and sent to it (put)."), []string{"op", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "grange", Subsystem: "bucket", Name: "request_seconds", Help: "Time to the answer of the origin, without the body of a get.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8), // 1 ms to 16 s
		}, []string{"op"}),
	}
	m.offset = prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("clock_offset_seconds", "How far the store's clock was before this one's when it answered last, to a second or two.")), func() float64 {
		return time.Duration(m.ahead.Load()).Seconds()
	})
	return m
}

// Collectors returns the metrics.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.bytes, m.seconds, m.offset}
}

// Counts returns the sums.
func (m *Metrics) Counts() Counts { return Counts{m.sent.Load(), m.in.Load(), m.out.Load()} }

func (m *Metrics) asked(op string, n int, start time.Time, err error) {
	m.sent.Add(int64(n))
	m.requests.WithLabelValues(op, outcome(err)).Add(float64(n))
	m.seconds.WithLabelValues(op).Observe(time.Since(start).Seconds())
}

// heard notes what time it is at the store.
func (m *Metrics) heard(now time.Time) {
	if !now.IsZero() {
		m.ahead.Store(int64(time.Until(now)))
	}
}

// outcome is a small set of labels, never the text of an error.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	for _, o := range []struct {
		err   error
		label string
	}{
		{content.ErrNotFound, "not_found"}, {ErrPrecondition, "precondition"}, {ErrUnknown, "unknown"}, {ErrOpen, "not_asked"}, {ErrSlowDown, "throttled"},
		{context.Canceled, "canceled"}, {content.ErrForbidden, "forbidden"}, {content.ErrUnavailable, "unavailable"},
	} {
		if errors.Is(err, o.err) {
			return o.label
		}
	}
	return "error"
}

// Get implements Bucket.
func (m *Metrics) Get(ctx context.Context, key string, r Range) (*Object, error) {
	start := time.Now()
	o, err := m.inner.Get(ctx, key, r)
	m.asked("get", 1, start, err)
	if err == nil {
		m.heard(o.Now)
		o.Body = &countedBody{o.Body, m}
	}
	return o, err
}

type countedBody struct {
	io.ReadCloser
	m *Metrics
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	cause := err
	if err == io.EOF {
		cause = nil
	}
	b.m.in.Add(int64(n))
	b.m.bytes.WithLabelValues("get", outcome(cause)).Add(float64(n))
	return n, err
}

// Put implements Bucket. Bytes that were refused were sent all the same.
func (m *Metrics) Put(ctx context.Context, key string, body Body, cond Condition) (Info, error) {
	start := time.Now()
	info, err := m.inner.Put(ctx, key, body, cond)
	m.asked("put", 1, start, err)
	m.heard(info.Now)
	if !errors.Is(err, ErrOpen) {
		m.out.Add(body.Size())
		m.bytes.WithLabelValues("put", outcome(err)).Add(float64(body.Size()))
	}
	return info, err
}

// List implements Bucket.
func (m *Metrics) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		start, seen := time.Now(), 0
		var failed error
		defer func() { m.asked("list", 1+max(seen-1, 0)/PageSize, start, failed) }()
		for info, err := range m.inner.List(ctx, prefix, after) {
			failed = err
			seen++
			if !yield(info, err) {
				return
			}
		}
	}
}

// Delete implements Bucket.
func (m *Metrics) Delete(ctx context.Context, key string) error {
	start := time.Now()
	err := m.inner.Delete(ctx, key)
	m.asked("delete", 1, start, err)
	return err
}
