package bucket

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/origin/content"
)

// Metrics is a bucket that counts what passes through it.
type Metrics struct {
	inner    Bucket
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	counts   [3]atomic.Int64 // requests, bytes in, bytes out
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
	return &Metrics{
		inner:    b,
		requests: prometheus.NewCounterVec(opts("requests_total", "Requests to the origin."), []string{"op", "outcome"}),
		bytes:    prometheus.NewCounterVec(opts("bytes_total", "Bytes to and from the origin."), []string{"direction"}),
	}
}

// Collectors returns the metrics.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.bytes}
}

// Counts returns the sums.
func (m *Metrics) Counts() Counts {
	return Counts{m.counts[0].Load(), m.counts[1].Load(), m.counts[2].Load()}
}

func (m *Metrics) request(op string, err error) {
	m.counts[0].Add(1)
	m.requests.WithLabelValues(op, outcome(err)).Inc()
}

// outcome is a small set of labels, never the text of an error.
func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, content.ErrNotFound):
		return "not_found"
	case errors.Is(err, ErrPrecondition):
		return "precondition"
	case errors.Is(err, ErrUnknown):
		return "unknown"
	case errors.Is(err, content.ErrUnavailable):
		return "unavailable"
	}
	return "error"
}

func (m *Metrics) transferred(direction string, index, n int) {
	m.counts[index].Add(int64(n))
	m.bytes.WithLabelValues(direction).Add(float64(n))
}

// Get implements Bucket.
func (m *Metrics) Get(ctx context.Context, key string, r Range) (*Object, error) {
	o, err := m.inner.Get(ctx, key, r)
	m.request("get", err)
	if err == nil {
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
	b.m.transferred("in", 1, n)
	return n, err
}

// Put implements Bucket.
func (m *Metrics) Put(ctx context.Context, key string, body Body, cond Condition) (Info, error) {
	info, err := m.inner.Put(ctx, key, body, cond)
	m.request("put", err)
	m.transferred("out", 2, int(body.Size()))
	return info, err
}

// List implements Bucket.
func (m *Metrics) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var failed error
		defer func() { m.request("list", failed) }()
		for info, err := range m.inner.List(ctx, prefix, after) {
			failed = err
			if !yield(info, err) {
				return
			}
		}
	}
}

// Delete implements Bucket.
func (m *Metrics) Delete(ctx context.Context, key string) error {
	err := m.inner.Delete(ctx, key)
	m.request("delete", err)
	return err
}

var _ Bucket = (*Metrics)(nil)
