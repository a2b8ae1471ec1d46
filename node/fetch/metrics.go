package fetch

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	bytes       [sources]prometheus.Counter
	failures    prometheus.Counter
	lies        prometheus.Counter
	banned      prometheus.Counter
	servedBytes prometheus.Counter
	hedgedBytes *atomic.Int64
}

func newMetrics() metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "grange", Subsystem: "fetch", Name: name, Help: help}
	}
	m := metrics{
		failures:    prometheus.NewCounter(opts("peer_failures_total", "Requests that a member failed or left unanswered.")),
		lies:        prometheus.NewCounter(opts("peer_lies_total", "Answers of members that did not match their hash.")),
		banned:      prometheus.NewCounter(opts("banned_peers_total", "Strangers that were banned for wrong bytes.")),
		servedBytes: prometheus.NewCounter(opts("served_bytes_total", "Bytes sent to other members.")),
		hedgedBytes: new(atomic.Int64),
	}
	vec := prometheus.NewCounterVec(opts("bytes_total", "Bytes read, by source."), []string{"source"})
	for s := range m.bytes {
		m.bytes[s] = vec.WithLabelValues(Source(s).String())
	}
	return m
}

func (m metrics) all() []prometheus.Collector {
	return []prometheus.Collector{sourceCounters(m.bytes), m.failures, m.lies, m.banned, m.servedBytes}
}

func (m metrics) served(n int) { m.servedBytes.Add(float64(n)) }

// sourceCounters collects the counters of one family.
type sourceCounters [sources]prometheus.Counter

// Describe implements prometheus.Collector.
func (c sourceCounters) Describe(ch chan<- *prometheus.Desc) {
	for _, counter := range c {
		counter.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (c sourceCounters) Collect(ch chan<- prometheus.Metric) {
	for _, counter := range c {
		counter.Collect(ch)
	}
}
