package fetch

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	bytes                                                         []prometheus.Collector // a counter a source
	failures, lies, banned, hedges, referrals, servedBytes, waits prometheus.Counter
	waiting                                                       prometheus.Gauge
}

// newMetrics returns the collectors; bytes are counted elsewhere, where guests
// read, and only shown here.
func newMetrics(bytes *counters) metrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "grange", Subsystem: "fetch", Name: name, Help: help}
	}
	m := metrics{
		failures:    prometheus.NewCounter(opts("peer_failures_total", "Requests that a member failed or left unanswered.")),
		lies:        prometheus.NewCounter(opts("peer_lies_total", "Answers of members that did not match their hash.")),
		banned:      prometheus.NewCounter(opts("banned_peers_total", "Strangers that were banned for wrong bytes.")),
		hedges:      prometheus.NewCounter(opts("hedges_total", "Reads of the origin beside a member that was slow.")),
		referrals:   prometheus.NewCounter(opts("referrals_total", "Requests that were referred to another member.")),
		servedBytes: prometheus.NewCounter(opts("served_bytes_total", "Bytes sent to other members.")),
		waiting:     prometheus.NewGauge(prometheus.GaugeOpts(opts("waiting_reads", "Reads of guests that every source has failed for now."))),
		waits:       prometheus.NewCounter(opts("waits_total", "Reads of guests that had to wait for a source to come back.")),
	}
	for s := range bytes {
		o := opts("bytes_total", "Bytes read, by source.")
		o.ConstLabels = prometheus.Labels{"source": Source(s).String()}
		m.bytes = append(m.bytes, prometheus.NewCounterFunc(o, func() float64 { return float64(bytes[s].Load()) }))
	}
	return m
}

func (m metrics) all() []prometheus.Collector {
	return append([]prometheus.Collector{m.failures, m.lies, m.banned, m.hedges, m.referrals, m.servedBytes, m.waiting, m.waits}, m.bytes...)
}
