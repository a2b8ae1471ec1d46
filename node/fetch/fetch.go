package fetch

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
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

// Members tells who is here. It is the farm.
type Members interface {
	// Live returns the live members of the farm, this node included.
	Live() []peer.ID
}

// Announcements is the swarm's DHT.
type Announcements interface {
	Announce(swarm.Key) error
	Withdraw(swarm.Key)
	Find(context.Context, swarm.Key) iter.Seq[peer.AddrInfo]
	Ban(peer.ID, time.Duration)
}

// Origin reads packs. It is a pack.Reader.
type Origin interface {
	ReadFrames(ctx context.Context, frames []pack.Extent) ([]content.Verified, error)
}

const (
	// jobTimeout ends a job that nothing else has ended: every ask has a deadline
	// of its own, so this is many of them in a row.
	jobTimeout = 2 * time.Minute
	// badFor is how long a member that failed is passed over, doubling with each
	// failure in a row up to badMax.
	badFor = 2 * time.Second
	badMax = time.Minute
	// banFor is how long a stranger that lied is shut out, and asideFor how long a
	// member of the farm is.
	banFor   = 24 * time.Hour
	asideFor = 10 * time.Minute
	// hedgeShare of the bytes of the last minute may be read twice.
	hedgeShare = 100
)

// Config is what a Fetcher is built from.
type Config struct {
	Cache    *cache.Cache
	Exchange *exchange.Exchange
	Members  Members
	Swarm    Announcements
	// Origin returns the reader of the origin, nil while there is none or it does
	// not answer.
	Origin func() Origin
	Self   peer.ID
	// Identity is this node's own; its farm decides what is near.
	Identity trust.Identity
	Verifier *trust.Verifier
	// Announce is the secret that roots are announced under.
	Announce [32]byte
	// Introduce turns the envelope of a record into its root, for members that ask
	// for one that this node has not met.
	Introduce func(envelope []byte) (Root, error)
	Now       func() time.Time
	Log       *slog.Logger
}

// Fetcher brings chunks in and serves them. Safe for concurrent use.
type Fetcher struct {
	cfg     Config
	codec   *content.Codec
	metrics metrics
	bytes   [sources]atomic.Int64
	wake    chan struct{}   // decide anew who announces what
	ctx     context.Context // ends with Run; flights run on it
	cancel  context.CancelFunc

	mu      sync.Mutex // guards what follows
	roots   map[content.CID]*rootState
	flights map[flightKey]*flight
	reading map[content.CID]*read // what the origin is being read for
	bad     map[peer.ID]failure
	running sync.WaitGroup
}

// failure is how a member failed lately.
type failure struct {
	until time.Time
	inRow int
}

// New builds a Fetcher.
func New(cfg Config) (*Fetcher, error) {
	if cfg.Cache == nil || cfg.Verifier == nil || cfg.Members == nil {
		return nil, errors.New("fetch: Config needs a Cache, a Verifier and Members")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Origin == nil {
		cfg.Origin = func() Origin { return nil }
	}
	f := &Fetcher{cfg: cfg, wake: make(chan struct{}, 1), codec: content.NewCodec(), metrics: newMetrics(), roots: map[content.CID]*rootState{}, flights: map[flightKey]*flight{}, reading: map[content.CID]*read{}, bad: map[peer.ID]failure{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f, nil
}

// Connect sets the exchange, which is built with the Fetcher as its server, and
// so after it. Call it before Run.
func (f *Fetcher) Connect(x *exchange.Exchange) { f.cfg.Exchange = x }

// Run announces what is held until ctx ends; then it ends the flights.
func (f *Fetcher) Run(ctx context.Context) error {
	f.announce(ctx)
	f.mu.Lock() // no flight begins after this
	f.cancel()
	f.mu.Unlock()
	f.running.Wait()
	return nil
}

// Collectors returns the metrics.
func (f *Fetcher) Collectors() []prometheus.Collector { return f.metrics.all() }

// Bytes returns how many bytes this node read, by source, for itself and for
// others.
func (f *Fetcher) Bytes() [sources]int64 {
	var out [sources]int64
	for s := range out {
		out[s] = f.bytes[s].Load()
	}
	return out
}

func (f *Fetcher) count(s Source, n int) {
	f.bytes[s].Add(int64(n))
	f.metrics.bytes[s].Add(float64(n))
}

// failed notes that a member did not answer; it is passed over for a while.
func (f *Fetcher) failed(id peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.bad[id]
	if b.until.Sub(f.cfg.Now()) > badMax { // it lied: what was under way meanwhile changes nothing
		return
	}
	b.inRow++
	b.until = f.cfg.Now().Add(min(badFor<<min(b.inRow-1, 10), badMax))
	f.bad[id] = b
	f.metrics.failures.Inc()
}

func (f *Fetcher) worked(id peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bad[id].until.Sub(f.cfg.Now()) <= badMax {
		delete(f.bad, id)
	}
}

// lied deals with a member whose bytes were not what it was asked for.
func (f *Fetcher) lied(id peer.ID, what string) {
	near := f.isNear(id)
	f.cfg.Log.Error("a member sent bytes that do not match their hash", "peer", id, "of_this_farm", near, "what", what)
	f.metrics.lies.Inc()
	if !near {
		if f.cfg.Swarm != nil {
			f.cfg.Swarm.Ban(id, banFor)
		}
		f.metrics.banned.Inc()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad[id] = failure{f.cfg.Now().Add(asideFor), 1}
}

// isNear reports whether a peer is a live member of this farm.
func (f *Fetcher) isNear(id peer.ID) bool {
	for _, m := range f.cfg.Members.Live() {
		if m == id {
			return true
		}
	}
	return false
}

func (f *Fetcher) sourceOf(id peer.ID) Source {
	if f.isNear(id) {
		return FromFarm
	}
	return FromSwarm
}

// Aside returns the members that are passed over now.
func (f *Fetcher) Aside() map[peer.ID]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[peer.ID]time.Time{}
	now := f.cfg.Now()
	for id, b := range f.bad {
		if b.until.After(now) {
			out[id] = b.until
		}
	}
	return out
}

// view is what the planner may know now.
func (f *Fetcher) view(rs *rootState, missing []uint64, level int) plan.View {
	v := plan.View{Swarm: map[string][]plan.Peer{}, Aside: map[plan.Peer]bool{}, Origin: f.cfg.Origin() != nil}
	live := f.cfg.Members.Live()
	for _, id := range live {
		v.Farm = append(v.Farm, plan.Peer(id))
	}
	for id := range f.Aside() {
		v.Aside[plan.Peer(id)] = true
	}
	v.HedgeBudget = f.hedgeBudget()
	rs.peers.view(&v, missing, level)
	return v
}

// hedgeBudget allows hedged reads up to a hundredth of all bytes, and one run to
// begin with.
func (f *Fetcher) hedgeBudget() bool {
	b := f.Bytes()
	total := b[FromFarm] + b[FromSwarm] + b[FromOrigin]
	return f.metrics.hedgedBytes.Load() <= total/hedgeShare
}

// wrapTried says which sources were asked in vain.
func wrapTried(what string, tried []string) error {
	if len(tried) > triedMax {
		tried = append(tried[:triedMax:triedMax], fmt.Sprintf("and %d more", len(tried)-triedMax))
	}
	text := "nobody to ask"
	for i, t := range tried {
		if i == 0 {
			text = t
		} else {
			text += "; " + t
		}
	}
	return fmt.Errorf("%s: %w: cache: absent; %s", what, content.ErrUnavailable, text)
}

// triedMax bounds how many sources an error names.
const triedMax = 8
