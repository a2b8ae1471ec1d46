package farm

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	all                               *prometheus.Registry
	joined, lost, complaints, refused prometheus.Counter
	attempts                          *prometheus.CounterVec
}

func newMetrics(f *Farm) metrics {
	all := prometheus.NewRegistry()
	to := promauto.With(all)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "grange", Subsystem: "farm", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return to.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	to.NewGaugeFunc(prometheus.GaugeOpts(opts("live_members", "Live members, this one included.")), func() float64 { return float64(len(f.Live())) })
	return metrics{
		all:        all,
		joined:     counter("joined_members_total", "Members that came, this one included."),
		lost:       counter("lost_members_total", "Members that left or died."),
		complaints: counter("complaints_total", "Warnings and errors of the gossip."),
		refused:    counter("refused_proofs_total", "Words and certificates in gossip that did not hold."),
		attempts:   to.NewCounterVec(prometheus.CounterOpts(opts("join_attempts_total", "Attempts to join a neighbour, by how they ended.")), []string{"outcome"}),
	}
}

// Collectors returns the metrics of this farm.
func (f *Farm) Collectors() []prometheus.Collector { return []prometheus.Collector{f.metrics.all} }
