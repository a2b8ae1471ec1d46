// Package fetch brings chunks to this node: from its cache, its farm, the swarm,
// or the origin, in the order that package plan decides. It also serves other
// members from the cache, and brings in for them what this node leads.
//
// A chunk has one flight at a time, which everyone who wants it waits for and
// which nobody's cancellation ends. Bytes are checked as they arrive, kept in the
// cache, and only then handed on.
//
// Knowing a name for something is no right to it. What is here carries how far it may
// go, its reach: as far as the widest scope under which its bytes were obtained.
// Under a root others are sent, shown, and fetched what goes as far as the root; what
// is here for less is absent for them until it was fetched for that. Flights and reads
// of the origin are apart by reach. This node's own guests read all that is here.
package fetch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/fetch/checks"
	"github.com/grangemesh/grange/node/fetch/crowds"
	"github.com/grangemesh/grange/node/fetch/have"
	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/patience"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/resident"
	"github.com/grangemesh/grange/node/fetch/roots"
	"github.com/grangemesh/grange/node/fetch/setup"
	"github.com/grangemesh/grange/node/fetch/shown"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/turns"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// What is counted goes by the names that users see.
type (
	Source = tally.Source
	Bytes  = tally.Bytes
)

// The rungs of the ladder.
const (
	FromCache  = tally.FromCache
	FromFarm   = tally.FromFarm
	FromSwarm  = tally.FromSwarm
	FromOrigin = tally.FromOrigin
)

// What a Fetcher is built from, and what it is told.
type (
	Config        = setup.Config
	Root          = setup.Root
	Members       = setup.Members
	Announcements = setup.Announcements
	Origin        = setup.Origin
)

const (
	// readTimeout ends a read of the origin that nothing else has ended: it has
	// deadlines of its own, so this is many of them in a row, behind the wait for a turn
	// at the least rates.
	readTimeout = 10 * time.Minute
	// banFor is how long a stranger that lied is shut out.
	banFor = 24 * time.Hour
)

// Fetcher brings chunks in and serves them. Safe for concurrent use.
//
// Lock order: rootState.mu, Fetcher.mu; nothing is locked under the
// last.
type Fetcher struct {
	cfg    Config
	codec  *content.Codec
	tally  *tally.Tally
	loads  *turns.Turns[loadKey] // bytes that are brought in for others
	checks checks.Places
	nodes  *resident.Clock[mapNode]
	pace   have.Pace
	shown  *shown.Book
	wake   chan struct{}   // decide anew who announces what
	ctx    context.Context // ends with Run; flights run on it
	cancel context.CancelCauseFunc

	back patience.Bell // of sources

	narrowing sync.Mutex // held while a root that has ended is narrowed; before all others

	mu      sync.Mutex // guards what follows
	mind    *plan.Member
	live    []peer.ID // as mind was told
	roots   *roots.Store[*rootState]
	objects map[object.Key]*onItsWay
	crowds  map[bool]*crowds.Of[crowdKey] // by whether they are of this farm
	running sync.WaitGroup
}

// New builds a Fetcher.
func New(cfg Config) (*Fetcher, error) {
	cfg, err := cfg.WithDefaults()
	if err != nil {
		return nil, err
	}
	f := &Fetcher{
		cfg: cfg, codec: content.NewCodec(), tally: tally.New(), wake: make(chan struct{}, 1), loads: turns.New[loadKey](loadMax), checks: checks.New(),
		nodes: resident.NewClock[mapNode](residentMax), roots: roots.New[*rootState](), objects: map[object.Key]*onItsWay{},
		crowds: map[bool]*crowds.Of[crowdKey]{true: crowds.New[crowdKey](plan.Peer(cfg.Self), 0), false: crowds.New[crowdKey](plan.Peer(cfg.Self), crowds.Busy)},
		mind:   plan.NewMember(plan.Peer(cfg.Self), cfg.Identity.Farm),
	}
	f.shown = newBook(f)
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	return f, nil
}

// Connect sets the exchange, which is built with the Fetcher as its server, and
// so after it. Call it before Run.
func (f *Fetcher) Connect(x *exchange.Exchange) { f.cfg.Exchange = x }

// Run announces what is held until ctx ends; then it ends the flights.
func (f *Fetcher) Run(ctx context.Context) error {
	f.announce(ctx)
	f.mu.Lock() // no flight begins after this
	f.cancel(errStopped)
	f.mu.Unlock()
	f.running.Wait()
	return nil
}

// Collectors returns the metrics.
func (f *Fetcher) Collectors() []prometheus.Collector { return f.tally.Collectors() }

// Bytes returns how many bytes this node brought in, for itself and for others, by
// source: those of the origin as they are stored, all others raw. From the cache
// are those that guests read there.
func (f *Fetcher) Bytes() Bytes { return f.tally.Bytes() }

// Tally returns what is counted, by root and by member too.
func (f *Fetcher) Tally() *tally.Tally { return f.tally }

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

// Think tells the planner of something, with who and what is here now: for others of the
// node, too, whose decisions are the planner's. Nothing that locks is done within.
func (f *Fetcher) Think(do func(*plan.Member)) {
	live, origin := f.cfg.Members.Live(), f.cfg.Origin() != nil
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look(live, origin)
	do(f.mind)
}

// look tells the planner who and what is here now. It is called with mu.
func (f *Fetcher) look(live []peer.ID, origin bool) {
	f.mind.Origin, f.mind.Asks, f.mind.Searches = origin, f.cfg.Exchange != nil, f.cfg.Swarm != nil
	if len(live) > 0 && len(live) == len(f.live) && &live[0] == &f.live[0] { // mostly
		return
	}
	same := slices.Equal(live, f.live)
	if f.live = live; same {
		return
	}
	members := make([]plan.Peer, len(live))
	for i, id := range live {
		members[i] = plan.Peer(id)
	}
	f.mind.Farm(members)
}

// lied deals with a member whose bytes were not what it was asked for.
func (f *Fetcher) lied(id peer.ID, what string) {
	var ban, first bool
	f.Think(func(m *plan.Member) { ban, first = m.Lied(plan.Peer(id), f.cfg.Now()) })
	f.cfg.Log.Error("a member sent bytes that do not match their hash", "peer", id, "of_this_farm", !ban, "what", what)
	f.tally.Lies.Inc()
	if ban && f.cfg.Swarm != nil { // also one that is passed over for something less
		f.cfg.Swarm.Ban(id, banFor, "sent wrong bytes: "+what)
	}
	if ban && first {
		f.tally.Banned.Inc()
	}
}

// Aside returns the members that are passed over now.
func (f *Fetcher) Aside() map[peer.ID]time.Time {
	out := map[peer.ID]time.Time{}
	f.Think(func(m *plan.Member) {
		for p, until := range m.Passed(f.cfg.Now(), false) {
			out[peer.ID(p)] = until
		}
	})
	return out
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
	f.Think(func(m *plan.Member) { m.Work(plan.Peer(id), f.cfg.Now()) })
}
