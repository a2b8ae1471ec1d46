package boots

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/origin/content"
)

// Use says what became of the list of a root on this node.
type Use struct {
	Boots  int       `json:"boots" doc:"that this node has seen of it"`
	Last   time.Time `json:"last,omitzero" doc:"when the last of them ended"`
	Listed int       `json:"listed" doc:"boots for which a list was brought in"`
	Share  float64   `json:"hit_share,omitempty" doc:"of the chunks that were brought in by lists, how many the guests have read by the end of their boots"`
	Left   bool      `json:"left_out,omitempty" doc:"the list has proved to be of so little use here that it is not brought in any more"`
}

// Use returns what became of the list of a root that was made then.
func (b *Boots) Use(root content.CID, made int64) (u Use) {
	p, ok := b.book.of(root)
	if !ok {
		return u
	}
	u = Use{Boots: p.Boots, Last: time.Unix(p.At, 0), Left: !b.book.worth(root, made)}
	if p.Made == made && p.Chunks > 0 {
		u.Listed, u.Share = p.Listed, float64(p.Read)/float64(p.Chunks)
	}
	return u
}

// Traces are the boots of a root that this node has kept: what each has read, in the order of first touch.
func (b *Boots) Traces(root content.CID) [][]uint64 {
	if p, ok := b.book.of(root); ok {
		return [][]uint64{p.First}
	}
	return nil
}

// Collectors returns the metrics.
func (b *Boots) Collectors() []prometheus.Collector { return []prometheus.Collector{b.chunk, b} }

// Describe implements prometheus.Collector for the bytes by source.
func (b *Boots) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(b, out) }

// Collect implements prometheus.Collector.
func (b *Boots) Collect(out chan<- prometheus.Metric) {
	desc := prometheus.NewDesc("grange_boot_listed_bytes_total", "Bytes that boot lists have brought in, by source.", []string{"source"}, nil)
	b.came.Now().Each(func(source string, n int64) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), source)
	})
}
