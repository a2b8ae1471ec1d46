// Package meter counts what a door serves.
package meter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/blockdev"
)

// commandsMax bounds the kinds of requests of a door.
const commandsMax = 16

// Meter has a door's metrics, with the counters of its hot path looked up once.
type Meter struct {
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	errors   *prometheus.CounterVec
	waits    prometheus.Histogram

	byCommand     []prometheus.Counter
	read, written prometheus.Counter
}

// New returns the metrics grange_DOOR_…; the commands are numbered as given, at
// most 16.
func New(door string, commands []string) *Meter {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "grange", Subsystem: door, Name: name, Help: help}, []string{label})
	}
	m := &Meter{
		requests: counter("requests_total", "Requests received, by command.", "command"),
		bytes:    counter("bytes_total", "Bytes of data asked for by clients.", "direction"),
		errors:   counter("errors_total", "Requests answered with an error, by error.", "error"),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "grange", Subsystem: door, Name: "wait_seconds",
			Help:    "Time in the device of requests that it could not answer at once.",
			Buckets: prometheus.ExponentialBuckets(64e-6, 4, 10), // 64 µs to 17 s
		}),
	}
	for _, name := range commands[:min(len(commands), commandsMax)] {
		m.byCommand = append(m.byCommand, m.requests.WithLabelValues(name))
	}
	m.read, m.written = m.bytes.WithLabelValues("read"), m.bytes.WithLabelValues("written")
	return m
}

// Collectors returns the metrics.
func (m *Meter) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.bytes, m.errors, m.waits}
}

// Failed counts a request that was answered with an error.
func (m *Meter) Failed(code blockdev.Errno) { m.errors.WithLabelValues(code.String()).Inc() }

// Waited counts the time of a request in the device.
func (m *Meter) Waited(d time.Duration) { m.waits.Observe(d.Seconds()) }

// Tally is what one connection or thread counted since it last told the meter:
// counters that processors share are dear at every request.
type Tally struct {
	requests      [commandsMax]uint32
	read, written uint64
}

// Add counts a request.
func (t *Tally) Add(command int) { t.requests[command]++ }

// Read counts bytes that a client asks for.
func (t *Tally) Read(bytes uint64) { t.read += bytes }

// Written counts bytes that a client brings.
func (t *Tally) Written(bytes uint64) { t.written += bytes }

// Publish adds the tally to the meter's counters and starts anew.
func (m *Meter) Publish(t *Tally) {
	for i, counter := range m.byCommand {
		if n := t.requests[i]; n > 0 {
			counter.Add(float64(n))
		}
	}
	if t.read > 0 {
		m.read.Add(float64(t.read))
	}
	if t.written > 0 {
		m.written.Add(float64(t.written))
	}
	*t = Tally{}
}
