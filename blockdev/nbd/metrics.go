package nbd

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/grangemesh/grange/blockdev/meter"
)

type metrics struct {
	*meter.Meter
	connections prometheus.Gauge
	ended       *prometheus.CounterVec
}

func newMetrics() metrics {
	m := meter.New("nbd", "read", "write", "disconnect", "flush", "trim", "cache", "write_zeroes", "block_status")
	auto := promauto.With(m.Registry)
	return metrics{m,
		auto.NewGauge(prometheus.GaugeOpts{
			Namespace: "grange", Subsystem: "nbd", Name: "connections", Help: "Open connections.",
		}),
		auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "grange", Subsystem: "nbd", Name: "connections_total",
			Help: "Connections that ended, by how: ok, lost, garbage, timeout, refused.",
		}, []string{"end"}),
	}
}

func (m metrics) connectionEnded(how string) { m.ended.WithLabelValues(how).Inc() }
