// Package tally counts what a node fetched and what it served: by source, by root, and by
// member. It decides nothing.
package tally

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/content"
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
	// peersMax bounds the members that are counted one by one; others are counted together.
	peersMax = 256
	// peerIdle is how long one must have been idle to make room for another.
	peerIdle = time.Hour
	// lateShare: the newest answer is an eighth of the latency that is shown.
	lateShare = 8
)

// Peer counts what went between this node and a member. Safe for concurrent use.
type Peer struct {
	received, sent, requests, failures, latency, used atomic.Int64
	why                                               atomic.Pointer[string] // of the latest failure
}

// Received notes bytes that it sent.
func (p *Peer) Received(n int) { p.received.Add(int64(n)) }

// Sent notes bytes that it was sent.
func (p *Peer) Sent(n int) { p.sent.Add(int64(n)) }

// Failed notes a request that it failed, or left unanswered.
func (p *Peer) Failed(why string) {
	p.failures.Add(1)
	p.why.Store(&why)
}

// Answered notes the first bytes of an answer, after so long.
func (p *Peer) Answered(after time.Duration) {
	for {
		was := p.latency.Load()
		now := int64(after)
		if was > 0 {
			now = was + (now-was)/lateShare
		}
		if p.latency.CompareAndSwap(was, now) {
			return
		}
	}
}

// Traded is what went between this node and a member since its start, or an hour of silence.
type Traded struct {
	Received int64   `json:"received_bytes"`
	Sent     int64   `json:"sent_bytes"`
	Requests int64   `json:"requests" doc:"that this node sent it"`
	Failures int64   `json:"failures" doc:"of them that it failed, or left unanswered"`
	Failure  string  `json:"failure,omitempty" doc:"why the latest of them failed"`
	Latency  float64 `json:"latency_seconds,omitempty" doc:"from a request to the first bytes of its answer, a mean of the latest"`
}

func (p *Peer) now() Traded {
	t := Traded{Received: p.received.Load(), Sent: p.sent.Load(), Requests: p.requests.Load(), Failures: p.failures.Load(), Latency: time.Duration(p.latency.Load()).Seconds()}
	if why := p.why.Load(); why != nil {
		t.Failure = *why
	}
	return t
}

// Peers are the members that this node traded with. Safe for concurrent use.
type Peers struct {
	mu     sync.Mutex // guards of
	of     map[peer.ID]*Peer
	others Peer
}

// Of returns the counts of a member.
func (s *Peers) Of(id peer.ID) *Peer {
	now := time.Now().Unix()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.of[id]
	if p == nil {
		if len(s.of) >= peersMax {
			maps.DeleteFunc(s.of, func(_ peer.ID, p *Peer) bool { return now-p.used.Load() > int64(peerIdle.Seconds()) })
		}
		if len(s.of) >= peersMax {
			return &s.others
		}
		if s.of == nil {
			s.of = map[peer.ID]*Peer{}
		}
		p = new(Peer)
		s.of[id] = p
	}
	p.used.Store(now)
	return p
}

// Others returns the counts of all that are not counted one by one.
func (s *Peers) Others() *Peer { return &s.others }

// Asked is Of a member that is sent a request.
func (s *Peers) Asked(id peer.ID) *Peer {
	p := s.Of(id)
	p.requests.Add(1)
	return p
}

// Now returns what was counted for each, and for those together that were too many.
func (s *Peers) Now() (of map[peer.ID]Traded, others Traded) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of = map[peer.ID]Traded{}
	for id, p := range s.of {
		of[id] = p.now()
	}
	return of, s.others.now()
}

// rootsMax bounds the roots that are counted one by one; later ones are counted together.
const rootsMax = 4096

// Tally is all that a node counts of what it fetches. Use New.
type Tally struct {
	Peers Peers

	mu     sync.Mutex // guards roots
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
	return &Tally{
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

// Bytes is what was counted of all roots.
func (t *Tally) Bytes() (sum Bytes) {
	for _, b := range t.Roots() {
		sum = sum.Plus(b)
	}
	return sum
}

// Collectors returns the metrics.
func (t *Tally) Collectors() []prometheus.Collector {
	return []prometheus.Collector{t.Failures, t.Lies, t.Banned, t.Hedges, t.HedgeWins, t.Referrals, t.Served, t.Waits, t.Waiting, counted{t}}
}

// counted shows what is counted where guests read, and of members.
type counted struct{ *Tally }

func (c counted) descs() (bytes, traded, requests, failures, latency *prometheus.Desc) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("grange_fetch_"+name, help, labels, nil)
	}
	return desc("bytes_total", "Bytes read, by source.", "source"),
		desc("peer_bytes_total", "Bytes that a member sent and was sent.", "peer", "direction"),
		desc("peer_requests_total", "Requests that a member was sent.", "peer"),
		desc("peer_failed_requests_total", "Requests that a member failed or left unanswered.", "peer"),
		desc("peer_latency_seconds", "From a request to the first bytes of its answer.", "peer")
}

// Describe implements prometheus.Collector.
func (c counted) Describe(out chan<- *prometheus.Desc) {
	bytes, traded, requests, failures, latency := c.descs()
	for _, d := range []*prometheus.Desc{bytes, traded, requests, failures, latency} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c counted) Collect(out chan<- prometheus.Metric) {
	bytes, traded, requests, failures, latency := c.descs()
	count := func(d *prometheus.Desc, n int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	c.Bytes().Each(func(source string, n int64) { count(bytes, n, source) })
	of, others := c.Peers.Now()
	of[""] = others
	for _, id := range slices.Sorted(maps.Keys(of)) {
		t, name := of[id], "others"
		if id != "" {
			name = id.String()
			out <- prometheus.MustNewConstMetric(latency, prometheus.GaugeValue, t.Latency, name)
		}
		count(traded, t.Received, name, "received")
		count(traded, t.Sent, name, "sent")
		count(requests, t.Requests, name)
		count(failures, t.Failures, name)
	}
}
