package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch/checks"
	"github.com/grangemesh/grange/node/fetch/crowds"
	"github.com/grangemesh/grange/node/fetch/frames"
	"github.com/grangemesh/grange/node/fetch/have"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/resident"
	"github.com/grangemesh/grange/node/fetch/roots"
	"github.com/grangemesh/grange/node/fetch/shown"
	"github.com/grangemesh/grange/node/fetch/waits"
	"github.com/grangemesh/grange/node/turns"
	"github.com/grangemesh/grange/origin/content"
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

// Bytes counts bytes by where they came from.
type Bytes struct {
	Cache  int64 `json:"cache"`
	Farm   int64 `json:"farm"`
	Swarm  int64 `json:"swarm"`
	Origin int64 `json:"origin"`
}

type counters [sources]atomic.Int64

func (c *counters) now() Bytes {
	return Bytes{c[FromCache].Load(), c[FromFarm].Load(), c[FromSwarm].Load(), c[FromOrigin].Load()}
}

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

// Origin reads packs, and may be a frames.Relocator.
type Origin = frames.Origin

const (
	// readTimeout ends a read of the origin that nothing else has ended: it has
	// deadlines of its own, so this is many of them in a row.
	readTimeout = 2 * time.Minute
	// banFor is how long a stranger that lied is shut out, and asideFor how long a
	// member of the farm is.
	banFor   = 24 * time.Hour
	asideFor = 10 * time.Minute
	// providersMax bounds the members remembered for reading the origin where this
	// node could not.
	providersMax = 4
)

// Config is what a Fetcher is built from.
type Config struct {
	Cache *cache.Cache
	// Exchange is how others are asked; it may be set later, with Connect. nil asks
	// nobody.
	Exchange *exchange.Exchange
	Members  Members
	// Swarm finds members of other farms; nil finds none.
	Swarm Announcements
	// Origin returns the reader of the origin, or nil
	// while there is none or it does not answer. It is asked often.
	Origin func() Origin
	Self   peer.ID
	// Identity is this node's own; its farm decides what is near.
	Identity trust.Identity
	Verifier *trust.Verifier
	// Announce returns the secret that roots are announced under, then others that
	// members may still use.
	Announce func() [][32]byte
	// Introduce checks the envelope of a record and returns its root, for members
	// that ask for one that this node has not met. nil takes none.
	Introduce func(envelope []byte) (Root, error)
	// IOTimeout is how long a guest's read waits for a source to come back; 0 is
	// IOTimeoutDefault.
	IOTimeout time.Duration
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

// Fetcher brings chunks in and serves them. Safe for concurrent use.
//
// Lock order: rootState.mu, Fetcher.mu; nothing is locked under the
// last, nor under habits.mu.
type Fetcher struct {
	cfg     Config
	codec   *content.Codec
	metrics metrics
	bytes   counters
	habits  habits
	loads   *turns.Turns[loadKey] // bytes that are brought in for others
	checks  checks.Pool
	nodes   *resident.Clock[mapNode]
	pace    have.Pace
	crowds  crowds.Book[crowdKey]
	shown   *shown.Book
	wake    chan struct{}   // decide anew who announces what
	ctx     context.Context // ends with Run; flights run on it
	cancel  context.CancelFunc

	back waits.Back // of sources

	narrowing sync.Mutex // held while a root that has ended is narrowed; before all others

	mu      sync.Mutex // guards what follows
	roots   *roots.Store[*rootState]
	flights map[flightKey]*flight
	reading map[objectKey]*read
	running sync.WaitGroup
}

// New builds a Fetcher.
func New(cfg Config) (*Fetcher, error) {
	if cfg.Cache == nil || cfg.Verifier == nil || cfg.Members == nil {
		return nil, errors.New("fetch: Config needs a Cache, a Verifier and Members")
	}
	cfg.IOTimeout = cmp.Or(cfg.IOTimeout, IOTimeoutDefault)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Announce == nil {
		cfg.Announce = func() [][32]byte { return make([][32]byte, 1) }
	}
	if cfg.Origin == nil {
		cfg.Origin = func() Origin { return nil }
	}
	f := &Fetcher{
		cfg: cfg, codec: content.NewCodec(), wake: make(chan struct{}, 1), loads: turns.New[loadKey](loadMax), checks: checks.New(),
		nodes: resident.NewClock[mapNode](residentMax), roots: roots.New[*rootState](), flights: map[flightKey]*flight{},
		reading: map[objectKey]*read{},
	}
	f.metrics = newMetrics(&f.bytes)
	f.shown = newBook(f)
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

// Bytes returns how many bytes this node brought in, for itself and for others, by
// source: those of the origin as they are stored, all others raw. From the cache
// are those that guests read there.
func (f *Fetcher) Bytes() Bytes { return f.bytes.now() }

func (f *Fetcher) count(s Source, n int) {
	f.bytes[s].Add(int64(n))
	if s != FromCache {
		f.habits.count(f.cfg.Now(), n)
	}
}

// start runs job unless the Fetcher has stopped, and Run waits for it.
func (f *Fetcher) start(job func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return false
	}
	f.running.Go(job)
	return true
}

// habits is what was learned of members and spent on hedges.
type habits struct {
	mu        sync.Mutex // guards what follows
	breaker   plan.Breaker
	budget    plan.Budget
	providers []plan.Peer // the latest first
}

func (h *habits) count(now time.Time, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.budget.Count(now, int64(n))
}

func (h *habits) spend(now time.Time, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.budget.Spend(now, int64(n))
}

// provided notes a member that brought in what this node could not.
func (h *habits) provided(p plan.Peer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.providers = slices.DeleteFunc(h.providers, func(q plan.Peer) bool { return p == q })
	h.providers = slices.Insert(h.providers, 0, p)
	h.providers = h.providers[:min(len(h.providers), providersMax)]
}

// failed notes that a member did not answer; it is passed over for a while.
func (f *Fetcher) failed(id peer.ID) {
	f.habits.mu.Lock()
	defer f.habits.mu.Unlock()
	f.habits.breaker.Fail(plan.Peer(id), f.cfg.Now())
	f.metrics.failures.Inc()
}

func (f *Fetcher) worked(id peer.ID) {
	f.habits.mu.Lock()
	defer f.habits.mu.Unlock()
	f.habits.breaker.Work(plan.Peer(id), f.cfg.Now())
}

// lied deals with a member whose bytes were not what it was asked for: a stranger
// or a seed is banned at once, a member of the farm set aside and reported.
func (f *Fetcher) lied(id peer.ID, what string) {
	near := f.isNear(id)
	f.cfg.Log.Error("a member sent bytes that do not match their hash", "peer", id, "of_this_farm", near, "what", what)
	f.metrics.lies.Inc()
	now := f.cfg.Now()
	f.habits.mu.Lock()
	_, again := f.habits.breaker.Passed(now, false)[plan.Peer(id)]
	f.habits.breaker.Aside(plan.Peer(id), now, asideFor)
	f.habits.mu.Unlock()
	if near {
		return
	}
	if f.cfg.Swarm != nil { // also one that is passed over for something less
		f.cfg.Swarm.Ban(id, banFor)
	}
	if !again { // more than one lie may be on its way
		f.metrics.banned.Inc()
	}
}

// isNear reports whether a peer is a live member of this farm.
func (f *Fetcher) isNear(id peer.ID) bool { return slices.Contains(f.cfg.Members.Live(), id) }

// live returns the live members of this farm, as the planner names them.
func (f *Fetcher) live() []plan.Peer {
	members := f.cfg.Members.Live()
	out := make([]plan.Peer, len(members))
	for i, id := range members {
		out[i] = plan.Peer(id)
	}
	return out
}

// Aside returns the members that are passed over now.
func (f *Fetcher) Aside() map[peer.ID]time.Time {
	f.habits.mu.Lock()
	defer f.habits.mu.Unlock()
	out := map[peer.ID]time.Time{}
	for p, until := range f.habits.breaker.Passed(f.cfg.Now(), false) {
		out[peer.ID(p)] = until
	}
	return out
}

// view is what the planner may know now; need is how many bytes are missing. Members
// that whoever is in a hurry passes over are tried for the next one.
func (f *Fetcher) view(rs *rootState, missing []uint64, level, need int, hurry bool) plan.View {
	v := plan.View{Farm: f.live(), Aside: map[plan.Peer]bool{}, Origin: f.cfg.Origin() != nil}
	if level > 0 { // a map node goes with the chunks that it names
		missing = nil
	}
	v.Holders, v.SwarmHolders = rs.peers.Holders(missing)
	v.Swarm, v.SwarmSettled = rs.peers.Found(), rs.peers.Settled()
	_, v.FarmSettled = rs.peers.NearSettled()
	now := f.cfg.Now()
	h := &f.habits
	h.mu.Lock()
	defer h.mu.Unlock()
	v.Wary = h.breaker.Wary(now)
	v.HedgeBudget = h.budget.Has(now, int64(need))
	v.Providers = slices.DeleteFunc(slices.Clone(h.providers), func(p plan.Peer) bool { return !slices.Contains(v.Farm, p) })
	for p := range h.breaker.Passed(now, hurry) {
		v.Aside[p] = true
		if (slices.Contains(v.Farm, p) || slices.Contains(v.SwarmHolders, p)) && h.breaker.Due(p, now) {
			f.start(func() { f.try(rs.head.Scope, peer.ID(p)) })
		}
	}
	return v
}

// try finds out whether a member that failed answers again: it asks for a root that
// nobody has, as the answer to that costs nothing.
func (f *Fetcher) try(scope content.Scope, id peer.ID) {
	ctx, cancel := context.WithTimeout(f.ctx, plan.TryMax)
	defer cancel()
	_, err := f.shown.Meet(ctx, scope, id)
	if err == nil {
		err = f.cfg.Exchange.Want(ctx, id, exchange.Request{Root: content.Sum(nil), Indexes: []uint64{0}, Priority: exchange.PriorityPrefetch}, func(exchange.Reply) {})
	}
	if err != nil {
		f.unmet(id, err)
		return
	}
	f.worked(id)
}

// triedError says which sources were asked in vain. What they failed with is of one of
// two kinds: content.ErrUnavailable, which may come right, or, where the climb is final,
// what the origin said of the bytes: content.ErrCorrupt or content.ErrNotFound.
func (f *Fetcher) triedError(what string, a plan.Action, cause error) error {
	sources := []string{"cache: absent"}
	for i, t := range a.Tried {
		switch id := peer.ID(t.Peer); {
		case i == triedMax:
			sources = append(sources, fmt.Sprintf("and %d more", len(a.Tried)-triedMax))
		case i > triedMax:
		case t.Peer == "":
			sources = append(sources, "origin: "+t.Why)
		case f.isNear(id):
			sources = append(sources, fmt.Sprintf("farm %s: %s", id, t.Why))
		default:
			sources = append(sources, fmt.Sprintf("swarm %s: %s", id, t.Why))
		}
	}
	category := content.ErrUnavailable
	switch {
	case !a.Final:
	case errors.Is(cause, content.ErrCorrupt):
		category = content.ErrCorrupt
	default:
		category = content.ErrNotFound
	}
	return fmt.Errorf("%s: %w: %s", what, category, strings.Join(sources, "; "))
}

// triedMax bounds how many sources an error names.
const triedMax = 8
