package fetch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/have"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/shown"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

const (
	// announceInterval is how often it is decided who announces which root.
	announceInterval = 5 * time.Second
	// rescanInterval bounds how often a bitmap is made anew after evictions.
	rescanInterval = 2 * time.Second
	// scanLearned and scanIntroduced bound the map nodes that one look at a root's map
	// takes in: a map can name one node everywhere. They are those of 16 TiB and of
	// 512 GiB in chunks of the default size.
	scanLearned, scanIntroduced = 1 << 17, 1 << 12
)

func (rs *rootState) scanMax() int {
	if rs.introducer != "" {
		return scanIntroduced
	}
	return scanLearned
}

// refresh looks at the cache again if it has evicted something, and not too often.
func (f *Fetcher) refresh(ctx context.Context, rs *rootState) {
	now := f.cfg.Now()
	rs.mu.Lock()
	// The first looks at what was learned come all at once, after a start, and would
	// put off what evictions ask for. What members introduce comes as they like.
	free := rs.scanned.IsZero() && rs.introducer == ""
	stale := rs.evicted != f.cfg.Cache.Evicted() && now.Sub(rs.scanned) >= rescanInterval
	due := free || (rs.scanned.IsZero() || stale) && f.pace.Due(now)
	if due {
		rs.scanned, rs.evicted = now, f.cfg.Cache.Evicted()
	}
	rs.mu.Unlock()
	if !due {
		return
	}
	begun := time.Now()
	f.rescan(ctx, rs)
	if !free {
		f.pace.Spent(f.cfg.Now(), time.Since(begun))
	}
}

// rescan looks for the chunks of a root in the cache.
func (f *Fetcher) rescan(ctx context.Context, rs *rootState) {
	rs.scanning.Lock()
	defer rs.scanning.Unlock()
	rs.here.Begin()
	rs.here.Found(f.scan(ctx, rs))
}

// scan looks for the chunks in the cache that go as far as the root, by what of the
// map is here and does too. They are no more than the cache has objects, twice over:
// a map can name one chunk everywhere.
func (f *Fetcher) scan(ctx context.Context, rs *rootState) *content.Bitmap {
	var set content.Bitmap
	reach, nodes, found := rs.reach(), rs.scanMax(), 2*f.cfg.Cache.Stats().Chunks
	f.walk(ctx, rs, byWalk(reach), func(p content.Pos, n *mapNode, err error) bool {
		if nodes--; err != nil || p.Level > 1 {
			return nodes > 0
		}
		for i, id := range n.Node.Entries {
			chunk := p.Child(i)
			if found > 0 && !id.IsHole() && f.cfg.Cache.HasFor(id, reach) && rs.shape.Contains(chunk) {
				set.Add(chunk.Index)
				found--
			}
		}
		return nodes > 0 && found > 0
	})
	return &set
}

// holds reports how many chunks of a root are here, as far as is known.
func (f *Fetcher) holds(ctx context.Context, rs *rootState) uint64 {
	f.refresh(ctx, rs)
	return rs.here.Len()
}

// announce decides again and again which roots this node announces, until ctx
// ends.
func (f *Fetcher) announce(ctx context.Context) {
	if f.cfg.Swarm == nil {
		<-ctx.Done()
		return
	}
	announced := have.Announced[swarm.Key]{}
	tick := time.Tick(announceInterval)
	serves := true
	for {
		if before := serves; before != f.cfg.Serves() {
			serves = !before
			for _, rs := range f.all() {
				rs.here.Tell() // who follows it hears so
			}
		}
		mine := map[swarm.Key]bool{}
		for _, rs := range f.all() {
			if f.announces(ctx, rs) {
				mine[swarm.KeyFor(rs.head.Scope, rs.id, f.cfg.Announce(rs.head.Scope)[0])] = true
			}
		}
		if err := announced.Settle(mine, f.cfg.Swarm.Announce, f.cfg.Swarm.Withdraw); err != nil {
			f.cfg.Log.Warn("not all roots are announced", "err", err)
		}
		select {
		case <-tick:
		case <-f.wake:
		case <-ctx.Done():
			_ = announced.Settle(nil, f.cfg.Swarm.Announce, f.cfg.Swarm.Withdraw) // announces none
			return
		}
	}
}

// announceSoon has it decided anew who announces what.
func (f *Fetcher) announceSoon() {
	select {
	case f.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// announces reports whether this node is to announce a root.
func (f *Fetcher) announces(ctx context.Context, rs *rootState) (yes bool) {
	if ctx.Err() != nil || rs.reach() == 0 || !f.cfg.Serves() {
		return false
	}
	holds := f.holds(ctx, rs) > 0
	f.Think(func(m *plan.Member) { yes = m.Announces(rs.peers.Mind, holds, f.cfg.Now()) })
	return yes
}

// Hold reads the map of an image whose chunks were put into the cache beside the
// fetcher, as an importer does, and announces it at once.
func (m *Image) Hold(ctx context.Context) error {
	for _, err := range m.CIDs(ctx) {
		if err != nil {
			return err
		}
	}
	m.f.rescan(ctx, m.rs.Load())
	m.f.announceSoon()
	return nil
}

// Prepare looks for members that hold the image, for as long as prefetch would: a
// guest's first read then knows whom to ask.
func (m *Image) Prepare(ctx context.Context) {
	peers := m.rs.Load().peers
	peers.Want()
	peers.Settle(ctx)
}

// Holders returns how many of the image's chunks members show, this node too, when those of the farm, and those found elsewhere, have had their time to. What they show
// may be some seconds old.
func (m *Image) Holders(ctx context.Context) map[peer.ID]uint64 {
	m.Prepare(ctx)
	rs := m.rs.Load()
	out := map[peer.ID]uint64{m.f.cfg.Self: m.f.holds(ctx, rs)}
	m.f.Think(func(*plan.Member) {
		for p, n := range rs.peers.Mind.Counts() {
			out[peer.ID(p)] = n
		}
	})
	return out
}

// newBook returns who shows what to this node.
func newBook(f *Fetcher) *shown.Book {
	cfg := shown.Config{
		Think: f.Think, Exchange: func() *exchange.Exchange { return f.cfg.Exchange }, Live: f.cfg.Members.Live,
		Farm: f.cfg.Identity.Farm, Announce: f.cfg.Announce,
		Start:  func(job func(context.Context)) bool { return f.start(func() { job(f.ctx) }) },
		Wanted: f.announceSoon, Unmet: f.unmet, Lied: f.lied, Now: f.cfg.Now, Log: f.cfg.Log,
	}
	if f.cfg.Swarm != nil {
		cfg.Find = f.cfg.Swarm.Find
		cfg.Peers = f.cfg.Swarm.Peers
	}
	return shown.New(cfg)
}

// unmet has a member passed over that could not be asked who it is, or that is not
// to be asked for anything.
func (f *Fetcher) unmet(id peer.ID, err error) {
	if !errors.Is(err, content.ErrForbidden) {
		f.tally.Failed(id, content.Line(err))
		f.Think(func(m *plan.Member) { m.Fail(plan.Peer(id), f.cfg.Now()) })
		return
	}
	f.cfg.Log.Debug("a peer is not asked", "peer", id, "err", err)
	f.Think(func(m *plan.Member) { m.Strange(plan.Peer(id), f.cfg.Now()) })
}

// stalled notes that a member was asked for that long and brought nothing.
func (f *Fetcher) stalled(id peer.ID, quiet time.Duration) {
	f.tally.Failed(id, fmt.Sprintf("brought nothing for %s", quiet.Round(time.Millisecond)))
	f.Think(func(m *plan.Member) { m.Stall(plan.Peer(id), f.cfg.Now(), quiet) })
}
