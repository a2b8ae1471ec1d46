package terms

import "github.com/prometheus/client_golang/prometheus"

// states counts the volumes of each state, when the metrics are asked for.
type states struct {
	list func() []View
	desc *prometheus.Desc
}

// Metrics counts what list returns, whenever it is collected.
func Metrics(list func() []View) prometheus.Collector {
	return states{list, prometheus.NewDesc("grange_volumes", "Volumes of this node by state.", []string{"state"}, nil)}
}

// Describe implements prometheus.Collector.
func (s states) Describe(out chan<- *prometheus.Desc) { out <- s.desc }

// Collect implements prometheus.Collector.
func (s states) Collect(out chan<- prometheus.Metric) {
	count := map[State]int{}
	for _, view := range s.list() {
		count[view.State]++
	}
	for _, state := range []State{StateOpening, StateAttached, StateUncommitted, StateDetached, StateFull, StateFailed} {
		out <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, float64(count[state]), string(state))
	}
}
