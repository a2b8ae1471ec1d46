package nbd

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/blockdev/meter"
)

const commandCount = cmdBlockStatus + 1

// commandName is a command in logs and labels.
func commandName(command uint16) string {
	return [...]string{cmdRead: "read", cmdWrite: "write", cmdDisconnect: "disconnect", cmdFlush: "flush", cmdTrim: "trim",
		cmdCache: "cache", cmdWriteZeroes: "write_zeroes", cmdBlockStatus: "block_status", commandCount: "unknown"}[min(command, commandCount)]
}

// metrics are the server's collectors.
type metrics struct {
	*meter.Meter
	connections prometheus.Gauge
	ended       *prometheus.CounterVec
}

func newMetrics() *metrics {
	var commands []string
	for i := range uint16(commandCount + 1) { // the last: unknown
		commands = append(commands, commandName(i))
	}
	return &metrics{
		Meter: meter.New("nbd", commands),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "grange", Subsystem: "nbd", Name: "connections", Help: "Open connections.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "grange", Subsystem: "nbd", Name: "connections_total",
			Help: "Connections that ended, by how: ok, lost, garbage, timeout, refused.",
		}, []string{"end"}),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return append(m.Collectors(), m.connections, m.ended)
}

func (m *metrics) connectionEnded(how string) { m.ended.WithLabelValues(how).Inc() }

// count adds a request to a connection's tally.
func count(t *meter.Tally, req request) {
	t.Add(int(min(req.command, commandCount)))
	switch req.command {
	case cmdRead:
		t.Read(uint64(req.length))
	case cmdWrite:
		t.Written(uint64(req.length))
	}
}
