package nbd

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const commandCount = cmdBlockStatus + 1

// commandName is a command in logs and labels.
func commandName(command uint16) string {
	switch command {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdDisconnect:
		return "disconnect"
	case cmdFlush:
		return "flush"
	case cmdTrim:
		return "trim"
	case cmdCache:
		return "cache"
	case cmdWriteZeroes:
		return "write_zeroes"
	case cmdBlockStatus:
		return "block_status"
	}
	return "unknown"
}

// metrics are the server's collectors, with the counters of the hot path looked
// up once.
type metrics struct {
	connections prometheus.Gauge
	ended       *prometheus.CounterVec
	requests    *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	errors      *prometheus.CounterVec
	waits       prometheus.Histogram

	byCommand     [commandCount + 1]prometheus.Counter // the last: unknown
	read, written prometheus.Counter
}

func newMetrics() *metrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "grange", Subsystem: "nbd", Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "grange", Subsystem: "nbd", Name: "connections", Help: "Open connections.",
		}),
		ended:    counter("connections_total", "Connections that ended, by how: ok, lost, garbage, timeout, refused.", "end"),
		requests: counter("requests_total", "Requests received, by command.", "command"),
		bytes:    counter("bytes_total", "Bytes of data asked for by clients.", "direction"),
		errors:   counter("errors_total", "Requests answered with an error, by error.", "error"),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "grange", Subsystem: "nbd", Name: "wait_seconds",
			Help:    "Time in the device of requests that it could not answer at once.",
			Buckets: prometheus.ExponentialBuckets(64e-6, 4, 10), // 64 µs to 17 s
		}),
	}
	for i := range m.byCommand {
		m.byCommand[i] = m.requests.WithLabelValues(commandName(uint16(i)))
	}
	m.read, m.written = m.bytes.WithLabelValues("read"), m.bytes.WithLabelValues("written")
	return m
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.connections, m.ended, m.requests, m.bytes, m.errors, m.waits}
}

func (m *metrics) failed(code errno)          { m.errors.WithLabelValues(code.String()).Inc() }
func (m *metrics) waited(d time.Duration)     { m.waits.Observe(d.Seconds()) }
func (m *metrics) connectionEnded(how string) { m.ended.WithLabelValues(how).Inc() }

// tally is what one connection counted since it last told metrics: counters
// shared between processors are dear at every request.
type tally struct {
	requests      [commandCount + 1]uint32
	read, written uint64
}

func (t *tally) add(req request) {
	t.requests[min(req.command, commandCount)]++
	switch req.command {
	case cmdRead:
		t.read += uint64(req.length)
	case cmdWrite:
		t.written += uint64(req.length)
	}
}

// publish adds the tally to the metrics and starts anew.
func (t *tally) publish(m *metrics) {
	for i, n := range t.requests {
		if n > 0 {
			m.byCommand[i].Add(float64(n))
		}
	}
	if t.read > 0 {
		m.read.Add(float64(t.read))
	}
	if t.written > 0 {
		m.written.Add(float64(t.written))
	}
	*t = tally{}
}
