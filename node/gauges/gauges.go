// Package gauges shows in numbers what operators are alarmed by: whether a node is ready, what
// is amiss though it is, what of its volumes the bucket lacks, and what runs out. It decides
// nothing, and keeps no more than since when a volume has been so.
package gauges

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/volumes/terms"
)

// Config says what is looked at.
type Config struct {
	Node *node.Node
	// Dir is the data folder, whose disk is looked at.
	Dir string
	// Certificates are files of PEM by what they are for. One that is not there is not shown.
	Certificates map[string]string
	Now          func() time.Time
}

// Gauges is a prometheus.Collector. Safe for concurrent use.
type Gauges struct {
	cfg Config

	mu     sync.Mutex         // guards behind
	behind map[string]lagging // the volumes of which the bucket lacks something
}

// lagging is since when the bucket lacks something that was written, as far as was seen: what
// it got last, it got at folded.
type lagging struct{ folded, since time.Time }

// New shows what a node is like, whenever it is asked.
func New(cfg Config) *Gauges { return &Gauges{cfg: cfg, behind: map[string]lagging{}} }

// Describe implements prometheus.Collector: what there is to show comes and goes.
func (g *Gauges) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (g *Gauges) Collect(out chan<- prometheus.Metric) {
	show := func(name, help string, v float64, labels ...string) {
		names, values := labels[:len(labels)/2], labels[len(labels)/2:]
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("grange_"+name, help, names, nil), prometheus.GaugeValue, v, values...)
	}
	s := g.cfg.Node.Status()
	show("node_ready", "Whether the node has joined and serves: 1.", one(s.Ready))
	show("node_revoked", "Whether this node was revoked, and is no member any more: 1.", one(!s.Self.Revoked.IsZero()))
	show("node_info", "The node, its farm and its version: 1.", 1, "name", "farm", "version", s.Self.Name, s.Self.Farm, s.Version)
	show("origin_up", "Whether the origin answers, and takes this node's requests, or this node has none: 1.", one(s.Origin.State != "unreachable" && s.Origin.State != "refused"))
	show("cache_full", "Whether chunks are passed on without being kept, for want of room: 1.", one(s.Cache.Full))
	for about, n := range warnings(s.Warnings) {
		show("node_warnings", "What is amiss though the node is ready, by what it is about: see grange status.", n, "about", about)
	}
	if free, total, err := cache.DiskFree(g.cfg.Dir); err == nil {
		show("disk_free_bytes", "Bytes that are free on the disk of the data folder.", float64(free))
		show("disk_size_bytes", "Bytes that this disk has.", float64(total))
	}
	for what, until := range g.certificates() {
		show("certificate_expiry_timestamp_seconds", "When a certificate of this node expires.", float64(until.Unix()), "certificate", what)
	}
	if g.cfg.Node.Volumes != nil {
		v := g.volumes(g.cfg.Node.Volumes.List())
		show("volumes_unfolded_seconds", "For how long the bucket has lacked something that was written to a volume here, of the one where it is longest, as far as it was seen.", v.behind.Seconds())
		show("volumes_degraded", "Volumes whose flushes are acknowledged by this node alone, though their durability asks for more.", float64(v.degraded))
		show("volumes_short", "Volumes that too few members hold: their flushes wait, and fail.", float64(v.short))
	}
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// abouts are what warnings are about, but for the names of volumes and folders: of those there
// may be many.
func abouts() []string {
	return []string{"farm", "mesh", "paths", "origin", "origin gc", "origin verify", "follow", "volume", "reader"}
}

func warnings(all []node.Warning) map[string]float64 {
	out := map[string]float64{}
	for _, about := range abouts() {
		out[about] = 0
	}
	for _, w := range all {
		about := w.About
		if _, known := out[about]; !known {
			if about = "reader"; strings.HasPrefix(w.About, "volume:") {
				about = "volume"
			}
		}
		out[about]++
	}
	return out
}

// certificates returns when they expire, by what they are for.
func (g *Gauges) certificates() map[string]time.Time {
	out := map[string]time.Time{}
	for _, c := range g.cfg.Node.Membership.State().Chain {
		if until, ok := out["membership"]; !ok || c.NotAfter.Before(until) {
			out["membership"] = c.NotAfter
		}
	}
	for what, path := range g.cfg.Certificates {
		text, err := os.ReadFile(path)
		if block, _ := pem.Decode(text); err == nil && block != nil {
			if c, err := x509.ParseCertificate(block.Bytes); err == nil {
				out[what] = c.NotAfter
			}
		}
	}
	return out
}

type risks struct {
	degraded, short int
	behind          time.Duration
}

func (g *Gauges) volumes(all []terms.View) (out risks) {
	now := g.cfg.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.behind
	g.behind = map[string]lagging{}
	for _, v := range all {
		if !v.Degraded.IsZero() {
			out.degraded++
		}
		if v.Short {
			out.short++
		}
		if v.Lag == 0 {
			continue
		}
		l, seen := before[v.Name]
		if !seen || !l.folded.Equal(v.FoldedAt) {
			l = lagging{v.FoldedAt, now}
		}
		g.behind[v.Name] = l
		out.behind = max(out.behind, now.Sub(l.since))
	}
	return out
}
