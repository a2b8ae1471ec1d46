package instance

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/instance/state"
)

// Collectors returns the metrics of the instances.
func (h *Hub) Collectors() []prometheus.Collector {
	return []prometheus.Collector{states{
		h, prometheus.NewDesc("grange_instances", "Instances of this node by state.", []string{"state"}, nil),
		prometheus.NewDesc("grange_instances_crashes", "How often those that are here have ended by themselves since they ran for long.", nil, nil),
	}}
}

// states counts the instances when they are asked for.
type states struct {
	hub     *Hub
	states  *prometheus.Desc
	crashes *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s states) Describe(out chan<- *prometheus.Desc) {
	out <- s.states
	out <- s.crashes
}

// Collect implements prometheus.Collector.
func (s states) Collect(out chan<- prometheus.Metric) {
	count, crashes := map[state.State]int{}, 0
	for _, v := range s.hub.List() {
		count[v.State]++
		crashes += v.Crashes
	}
	for _, is := range state.All() {
		out <- prometheus.MustNewConstMetric(s.states, prometheus.GaugeValue, float64(count[is]), string(is))
	}
	out <- prometheus.MustNewConstMetric(s.crashes, prometheus.GaugeValue, float64(crashes))
}
