package node

import (
	"cmp"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
)

// shownMax bounds the images, the volumes and the members that metrics name: those of most
// bytes. What the other images and volumes read is summed as othersLabel.
const (
	shownMax    = 64
	othersLabel = "others"
)

// seen are the metrics by image, by volume and by member, made when they are asked for.
type seen struct{ n *Node }

func (s seen) Describe(chan<- *prometheus.Desc) {} // what there is to show comes and goes

func (s seen) Collect(out chan<- prometheus.Metric) {
	show := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		names, values := labels[:len(labels)/2], labels[len(labels)/2:]
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("grange_"+name, help, names, nil), kind, v, values...)
	}
	images, vols := map[string]fetch.Bytes{}, map[string]fetch.Bytes{}
	for root, b := range s.n.fetch.Tally().Roots() {
		name := s.n.calledRoot(root)
		images[name] = images[name].Plus(b)
	}
	if s.n.Volumes != nil {
		for _, v := range s.n.Volumes.List() {
			vols[v.Name] = v.Bytes
		}
	}
	for what, all := range map[string]map[string]fetch.Bytes{"image": images, "volume": vols} {
		for name, b := range most(all) {
			b.Each(func(source string, n int64) {
				show(prometheus.CounterValue, what+"_bytes_total", "Bytes read of it on this node, by source.", float64(n), what, "source", name, source)
			})
		}
	}
	peers := slices.DeleteFunc(s.n.Peers(), func(p Peer) bool { return p.State == "banned" })
	slices.SortStableFunc(peers, func(a, b Peer) int { return cmp.Compare(b.Received+b.Sent, a.Received+a.Sent) })
	for _, p := range peers[:min(len(peers), shownMax)] {
		show(prometheus.CounterValue, "peer_bytes_total", "Bytes of content that a member here now sent, and was sent.", float64(p.Received), "peer", "direction", p.ID, "received")
		show(prometheus.CounterValue, "peer_bytes_total", "Bytes of content that a member here now sent, and was sent.", float64(p.Sent), "peer", "direction", p.ID, "sent")
		show(prometheus.CounterValue, "peer_requests_total", "Requests that a member here now was sent.", float64(p.Requests), "peer", p.ID)
		show(prometheus.CounterValue, "peer_failed_requests_total", "Those of them that it failed, or left unanswered.", float64(p.Failures), "peer", p.ID)
		show(prometheus.GaugeValue, "peer_latency_seconds", "From a request to the first bytes of its answer.", p.Latency, "peer", p.ID)
		show(prometheus.GaugeValue, "peer_path", "The way of the connection with a member: 1.", 1, "peer", "way", p.ID, cmp.Or(string(p.Way), "none"))
	}
}

// calledRoot is the name of an image with that root, or else the root's own.
func (n *Node) calledRoot(root content.CID) string {
	for _, scope := range []content.Scope{content.Public(), content.Mesh(), content.Farm(n.Farm())} {
		if k, ok := n.Names.OfRoot(root, scope); ok {
			return k.Name
		}
	}
	if root.IsHole() { // of roots that were too many to be counted one by one
		return othersLabel
	}
	return root.String()
}

// most keeps those of most bytes, and sums the others.
func most(all map[string]fetch.Bytes) map[string]fetch.Bytes {
	total := func(b fetch.Bytes) (sum int64) { b.Each(func(_ string, n int64) { sum += n }); return sum }
	names := slices.SortedFunc(maps.Keys(all), func(a, b string) int { return cmp.Or(cmp.Compare(total(all[b]), total(all[a])), cmp.Compare(a, b)) })
	out := map[string]fetch.Bytes{}
	for i, name := range names {
		if i >= shownMax {
			out[othersLabel] = out[othersLabel].Plus(all[name])
		} else if total(all[name]) > 0 {
			out[name] = out[name].Plus(all[name])
		}
	}
	return out
}
