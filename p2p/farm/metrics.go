package farm

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	joined, lost, complaints, refused prometheus.Counter
	attempts                          *prometheus.CounterVec
}

func newMetrics() metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "grange", Subsystem: "farm", Name: name, Help: help}
	}
	return metrics{
		joined:     prometheus.NewCounter(opts("joined_members_total", "Members that came, this one included.")),
		lost:       prometheus.NewCounter(opts("lost_members_total", "Members that left or died.")),
		complaints: prometheus.NewCounter(opts("complaints_total", "Warnings and errors of the gossip.")),
		refused:    prometheus.NewCounter(opts("refused_proofs_total", "Words and certificates in gossip that did not hold.")),
		attempts:   prometheus.NewCounterVec(opts("join_attempts_total", "Attempts to join a neighbour, by how they ended."), []string{"outcome"}),
	}
}

// Collectors returns the metrics of this farm.
func (f *Farm) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		f.metrics.joined, f.metrics.lost, f.metrics.complaints, f.metrics.refused, f.metrics.attempts,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "grange", Subsystem: "farm", Name: "live_members", Help: "Live members, this one included."},
			func() float64 { return float64(len(f.Members())) }),
	}
}
