package exchange

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	all                      *prometheus.Registry
	sent, received, requests *prometheus.CounterVec
	violations               prometheus.Counter
}

func newMetrics() metrics {
	all := prometheus.NewRegistry()
	to := promauto.With(all)
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "grange", Subsystem: "exchange", Name: name, Help: help}
	}
	return metrics{
		all:        all,
		sent:       to.NewCounterVec(opts("sent_bytes_total", "Bytes of data frames sent to peers, by priority."), []string{"priority"}),
		received:   to.NewCounterVec(opts("received_bytes_total", "Bytes of data frames received from peers, by priority."), []string{"priority"}),
		requests:   to.NewCounterVec(opts("requests_total", "Requests to peers, by how they ended."), []string{"outcome"}),
		violations: to.NewCounter(opts("violations_total", "Streams closed because the peer broke the protocol.")),
	}
}
