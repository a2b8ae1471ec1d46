package upkeep

import "github.com/prometheus/client_golang/prometheus"

// Collectors returns the metrics.
func (u *Upkeep) Collectors() []prometheus.Collector { return []prometheus.Collector{figures{u}} }

type figures struct{ *Upkeep }

// Describe implements prometheus.Collector: what there is to show comes with the runs.
func (u figures) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (u figures) Collect(out chan<- prometheus.Metric) {
	show := func(kind prometheus.ValueType, name, help string, v float64) {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("grange_origin_"+name, help, nil, nil), kind, v)
	}
	v := u.View()
	for what, s := range map[string]Standing{"gc": v.Collections.Standing, "verify": v.Checks.Standing} {
		failing := 0.0
		if s.Error != "" {
			failing = 1
		}
		show(prometheus.GaugeValue, what+"_failing", "Whether the last "+what+" has failed: 1.", failing)
		if !s.Ended.IsZero() {
			show(prometheus.GaugeValue, what+"_last_success_timestamp_seconds", "When the last "+what+" ended that this node knows of and that went well.", float64(s.Ended.Unix()))
		}
	}
	u.mu.Lock()
	freed := u.freed
	u.mu.Unlock()
	show(prometheus.CounterValue, "gc_freed_bytes_total", "Bytes at the origin that collections of this node have given back.", float64(freed))
	if r := v.Collections.Last; r != nil {
		show(prometheus.GaugeValue, "gc_live_bytes", "Bytes at the origin that records name, with what is dead in the same packs, as the last collection of the mesh found.", float64(r.Live.Bytes))
		show(prometheus.GaugeValue, "gc_waiting_bytes", "Bytes that are dead and wait for the end of their grace, as it has left them.", float64(r.Waiting.Bytes))
		show(prometheus.GaugeValue, "gc_dead_bytes", "Bytes that it found dead, deleted or not.", float64(r.Waiting.Bytes+r.Deleted.Bytes+r.Repacked.Bytes))
		show(prometheus.GaugeValue, "gc_broken_names", "Names that it could not read.", float64(r.Broken))
	}
	if r := v.Checks.Report; r != nil {
		show(prometheus.GaugeValue, "verify_hurt_names", "Names at the origin that the last whole check of this node found hurt.", float64(r.HurtNames))
	}
}
