// Package meter counts what a door serves.
package meter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/grangemesh/grange/blockdev"
)

// The commands that bring data have these numbers at all doors. commandsMax bounds the
// kinds of requests of a door.
const (
	commandRead  = 0
	commandWrite = 1
	commandsMax  = 16
)

// Meter has a door's metrics, with the counters of its hot path looked up once.
type Meter struct {
	Registry *prometheus.Registry // of all of them; a door may add its own
	names    []string
	errors   *prometheus.CounterVec
	waits    prometheus.Histogram

	byCommand     [commandsMax]prometheus.Counter
	read, written prometheus.Counter
}

// New returns the metrics grange_DOOR_…; the commands are numbered as named, from 0.
func New(door string, names ...string) *Meter {
	m := &Meter{Registry: prometheus.NewRegistry(), names: names}
	auto := promauto.With(m.Registry)
	counter := func(name, help, label string) *prometheus.CounterVec {
		return auto.NewCounterVec(prometheus.CounterOpts{Namespace: "grange", Subsystem: door, Name: name, Help: help}, []string{label})
	}
	requests := counter("requests_total", "Requests received, by command.", "command")
	bytes := counter("bytes_total", "Bytes of data asked for by clients.", "direction")
	m.errors = counter("errors_total", "Requests answered with an error, by error.", "error")
	m.waits = auto.NewHistogram(prometheus.HistogramOpts{
		Namespace: "grange", Subsystem: door, Name: "wait_seconds",
		Help:    "Time in the device of requests that it could not answer at once.",
		Buckets: prometheus.ExponentialBuckets(64e-6, 4, 10), // 64 µs to 17 s
	})
	for command := range m.byCommand {
		m.byCommand[command] = requests.WithLabelValues(m.Name(command))
	}
	m.read, m.written = bytes.WithLabelValues("read"), bytes.WithLabelValues("written")
	return m
}

// Name is a command in logs and labels.
func (m *Meter) Name(command int) string {
	if command < len(m.names) && m.names[command] != "" {
		return m.names[command]
	}
	return "unknown"
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

// Count counts a request for so many bytes.
func (t *Tally) Count(command int, bytes uint64) {
	t.requests[min(command, commandsMax-1)]++
	switch command {
	case commandRead:
		t.read += bytes
	case commandWrite:
		t.written += bytes
	}
}

// Publish adds the tally to the meter's counters and starts anew.
func (m *Meter) Publish(t *Tally) {
	for command, n := range t.requests {
		if n > 0 {
			m.byCommand[command].Add(float64(n))
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
