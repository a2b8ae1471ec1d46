// Package tally counts what a node fetched and what it served: by source, by root, and by
// member. It decides nothing.
package tally

import (
	"cmp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
)

// Source is a rung of the ladder.
type Source uint8

// The rungs.
const (
	FromCache Source = iota
	FromFarm
	FromSwarm
	FromOrigin

	sources = int(FromOrigin) + 1
)

// String returns the name that users see.
func (s Source) String() string { return [...]string{"cache", "farm", "swarm", "origin"}[s] }

// Bytes counts bytes by where they came from.
type Bytes struct {
	Cache  int64 `json:"cache"`
	Farm   int64 `json:"farm"`
	Swarm  int64 `json:"swarm"`
	Origin int64 `json:"origin"`
}

// Plus is the sum of two.
func (b Bytes) Plus(c Bytes) Bytes {
	return Bytes{b.Cache + c.Cache, b.Farm + c.Farm, b.Swarm + c.Swarm, b.Origin + c.Origin}
}

// Less is what one is more than another of before.
func (b Bytes) Less(c Bytes) Bytes {
	return Bytes{b.Cache - c.Cache, b.Farm - c.Farm, b.Swarm - c.Swarm, b.Origin - c.Origin}
}

// Seconds is what counts nanoseconds, by source.
func (b Bytes) Seconds() map[string]float64 {
	out := map[string]float64{}
	b.Each(func(source string, n int64) { out[source] = time.Duration(n).Seconds() })
	return out
}

// Each calls f with each source and its bytes.
func (b Bytes) Each(f func(source string, n int64)) {
	for s, n := range [sources]int64{b.Cache, b.Farm, b.Swarm, b.Origin} {
		f(Source(s).String(), n)
	}
}

// Counters count bytes by source. The zero value is ready; safe for concurrent use.
type Counters [sources]atomic.Int64

// Now returns them.
func (c *Counters) Now() Bytes {
	return Bytes{c[FromCache].Load(), c[FromFarm].Load(), c[FromSwarm].Load(), c[FromOrigin].Load()}
}

const (
	// peersMax bounds the members of whom it is known how requests went, the latest ones.
	peersMax = 1024
	// lateShare: the newest answer is an eighth of the latency that is shown.
	lateShare = 8
)

// Asked is how the requests to a member went.
type Asked struct {
	Requests int64   `json:"requests" doc:"that this node sent it"`
	Failures int64   `json:"failures" doc:"of them that it failed, or left unanswered"`
	Failure  string  `json:"failure,omitempty" doc:"how the latest of them failed"`
	Latency  float64 `json:"latency_seconds,omitempty" doc:"from a request to the first bytes of its answer, a mean of the latest"`
}

// rootsMax bounds the roots that are counted one by one; later ones are counted together.
const rootsMax = 4096

// Tally is all that a node counts of what it fetches. Use New.
type Tally struct {
	// Avoidable are bytes that were read from the origin although a member showed them.
	Avoidable atomic.Int64
	// Spent is how long reads of guests have waited for what came from each source, in nanoseconds.
	Spent Counters

	mu     sync.Mutex // guards what follows
	peers  *simplelru.LRU[peer.ID, *Asked]
	roots  map[content.CID]*Counters
	others Counters

	Failures, Lies, Banned, Hedges, HedgeWins, Referrals, Served, Waits prometheus.Counter
	Waiting                                                             prometheus.Gauge
}

// New returns one that has counted nothing.
func New() *Tally {
	count := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "grange", Subsystem: "fetch", Name: name, Help: help})
	}
	peers, _ := simplelru.NewLRU[peer.ID, *Asked](peersMax, nil) // fails for sizes below 1 only
	return &Tally{
		peers:     peers,
		roots:     map[content.CID]*Counters{},
		Failures:  count("peer_failures_total", "Requests that a member failed or left unanswered."),
		Lies:      count("peer_lies_total", "Answers of members that did not match their hash."),
		Banned:    count("banned_peers_total", "Strangers that were banned for wrong bytes."),
		Hedges:    count("hedges_total", "Reads of the origin beside a member that was slow."),
		HedgeWins: count("hedge_wins_total", "Those of them that brought something before the member."),
		Referrals: count("referrals_total", "Requests that were referred to another member."),
		Served:    count("served_bytes_total", "Bytes sent to other members."),
		Waits:     count("waits_total", "Reads of guests that had to wait for a source to come back."),
		Waiting:   prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "grange", Subsystem: "fetch", Name: "waiting_reads", Help: "Reads of guests that every source has failed for now."}),
	}
}

// of returns what is counted of a member. The caller holds mu.
func (t *Tally) of(id peer.ID) *Asked {
	a, ok := t.peers.Get(id)
	if !ok {
		a = new(Asked)
		t.peers.Add(id, a)
	}
	return a
}

// Asked notes a request to a member.
func (t *Tally) Asked(id peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of(id).Requests++
}

// Failed notes one that it failed, or left unanswered.
func (t *Tally) Failed(id peer.ID, why string) {
	t.Failures.Inc()
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.of(id)
	a.Failures++
	a.Failure = why
}

// Answered notes the first bytes of an answer, after so long.
func (t *Tally) Answered(id peer.ID, after time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, now := t.of(id), after.Seconds()
	a.Latency += (now - cmp.Or(a.Latency, now)) / lateShare
	a.Latency = cmp.Or(a.Latency, now)
}

// Of returns what was noted of a member.
func (t *Tally) Of(id peer.ID) Asked {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a, ok := t.peers.Peek(id); ok {
		return *a
	}
	return Asked{}
}

// Root returns the counters of a root, which stay.
func (t *Tally) Root(id content.CID) *Counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.roots[id]
	switch {
	case c == nil && len(t.roots) >= rootsMax:
		return &t.others
	case c == nil:
		c = new(Counters)
		t.roots[id] = c
	}
	return c
}

// Roots returns what was counted of each root, and of those together that were too many
// under the zero CID.
func (t *Tally) Roots() map[content.CID]Bytes {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[content.CID]Bytes{{}: t.others.Now()}
	for id, c := range t.roots {
		out[id] = c.Now()
	}
	return out
}

// BytesOf returns what was counted of a root.
func (t *Tally) BytesOf(id content.CID) (b Bytes) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.roots[id]; c != nil {
		b = c.Now()
	}
	return b
}

// Bytes is what was counted of all roots.
func (t *Tally) Bytes() (sum Bytes) {
	for _, b := range t.Roots() {
		sum = sum.Plus(b)
	}
	return sum
}

// Collectors returns the metrics.
func (t *Tally) Collectors() []prometheus.Collector {
	return []prometheus.Collector{t.Failures, t.Lies, t.Banned, t.Hedges, t.HedgeWins, t.Referrals, t.Served, t.Waits, t.Waiting, t}
}

// Describe implements prometheus.Collector for the bytes by source.
func (t *Tally) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(t, out) }

// Collect implements prometheus.Collector.
func (t *Tally) Collect(out chan<- prometheus.Metric) {
	desc := prometheus.NewDesc("grange_fetch_bytes_total", "Bytes read, by source.", []string{"source"}, nil)
	out <- prometheus.MustNewConstMetric(prometheus.NewDesc("grange_fetch_avoidable_bytes_total", "Bytes read from the origin although a member showed them, as it was passed over or slow.", nil, nil), prometheus.CounterValue, float64(t.Avoidable.Load()))
	t.Bytes().Each(func(source string, n int64) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), source)
	})
	spent := prometheus.NewDesc("grange_fetch_guest_seconds_total", "How long reads of guests waited, by the source of what they waited for.", []string{"source"}, nil)
	for source, seconds := range t.Spent.Now().Seconds() {
		out <- prometheus.MustNewConstMetric(spent, prometheus.CounterValue, seconds, source)
	}
}
