package exchange

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	sent       *prometheus.CounterVec
	received   *prometheus.CounterVec
	requests   *prometheus.CounterVec
	violations prometheus.Counter
}

func newMetrics() metrics {
	return metrics{
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grange_exchange_sent_bytes_total", Help: "Bytes of data frames sent to peers, by priority.",
		}, []string{"priority"}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grange_exchange_received_bytes_total", Help: "Bytes of data frames received from peers, by priority.",
		}, []string{"priority"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grange_exchange_requests_total", Help: "Requests to peers, by how they ended.",
		}, []string{"outcome"}),
		violations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "grange_exchange_violations_total", Help: "Streams closed because the peer broke the protocol.",
		}),
	}
}

func (m metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.sent, m.received, m.requests, m.violations}
}

// String returns the name of the priority.
func (p Priority) String() string {
	switch p {
	case PriorityGuest:
		return "guest"
	case PriorityReadahead:
		return "readahead"
	case PriorityPrefetch:
		return "prefetch"
	}
	return "seed"
}
