package fetch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/swarm"
)

const (
	// announceInterval is how often it is decided who announces which root.
	announceInterval = 5 * time.Second
	// announcersPerFarm announce a root: a second one outlives the first.
	announcersPerFarm = 2
	// rescanInterval bounds how often a bitmap is made anew after evictions, and
	// rescanShare how much of the time that may take, of all roots together: one
	// part in so many.
	rescanInterval = 2 * time.Second
	rescanShare    = 50
	// newsMax bounds the additions to a bitmap that are remembered; beyond it, those
	// who follow get the whole again.
	newsMax = 1 << 16
)

// have is which chunks of a root are here, guarded by the root's lock. It is made
// by looking at the cache, added to as chunks land, and made anew when the cache
// has evicted something.
type have struct {
	set     content.Bitmap
	scanned time.Time
	evicted uint64
	landed  *content.Bitmap // while a scan is under way, which may miss it; else nil

	// news are the additions since the set was made, for those who follow it, and
	// edition is how often it was made.
	news    []uint64
	edition uint64
	changed chan struct{} // closed at the next addition; nil while nobody waits
}

// noteHave adds a chunk that has landed.
func (rs *rootState) noteHave(index uint64) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	h := &rs.have
	if h.landed != nil {
		h.landed.Add(index)
	}
	if h.set.Has(index) {
		return
	}
	h.set.Add(index)
	if len(h.news) == newsMax {
		h.news = nil
		h.edition++
	}
	h.news = append(h.news, index)
	h.tell()
}

func (h *have) tell() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// found ends a scan: what it found is here, and what landed meanwhile.
func (h *have) found(set *content.Bitmap) {
	set.Union(h.landed)
	h.landed = nil
	if h.edition > 0 && set.Len() == h.set.Len() {
		return
	}
	h.set = *set
	h.news = nil
	h.edition++
	h.tell()
}

// follower has been told of a set up to some point.
type follower struct {
	edition uint64
	told    int
}

// next returns what there is to tell, all of the set or additions to it; nil and a
// channel to wait on when there is nothing.
func (h *have) next(fo *follower) (*content.Bitmap, <-chan struct{}) {
	if fo.edition != h.edition+1 {
		*fo = follower{h.edition + 1, len(h.news)}
		return h.set.Clone(), nil
	}
	if fo.told == len(h.news) {
		if h.changed == nil {
			h.changed = make(chan struct{})
		}
		return nil, h.changed
	}
	var fresh content.Bitmap
	for _, index := range h.news[fo.told:] {
		fresh.Add(index)
	}
	fo.told = len(h.news)
	return &fresh, nil
}

// refresh looks at the cache again if it has evicted something, and not too often.
func (f *Fetcher) refresh(ctx context.Context, rs *rootState) {
	now := f.cfg.Now()
	rs.mu.Lock()
	h := &rs.have
	first := h.scanned.IsZero()
	stale := h.evicted != f.cfg.Cache.Evicted() && now.Sub(h.scanned) >= rescanInterval
	due := first || stale && f.pace.due(now)
	if due {
		h.scanned, h.evicted = now, f.cfg.Cache.Evicted()
	}
	rs.mu.Unlock()
	if !due {
		return
	}
	cost := f.rescan(ctx, rs)
	if !first { // those come all at once, after a start, and would put off what evictions ask for
		f.pace.spent(f.cfg.Now(), cost)
	}
}

// pace is when the cache may be looked at again.
type pace struct {
	mu   sync.Mutex // guards next
	next time.Time
}

func (p *pace) due(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !now.Before(p.next)
}

// spent has the next look wait for its share of what this one took.
func (p *pace) spent(now time.Time, cost time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(rescanShare * cost)
}

// rescan looks for every chunk in the cache, and returns how long that took.
func (f *Fetcher) rescan(ctx context.Context, rs *rootState) (cost time.Duration) {
	rs.scanning.Lock()
	defer rs.scanning.Unlock()
	h := &rs.have
	rs.mu.Lock()
	h.landed = new(content.Bitmap)
	rs.mu.Unlock()
	begun := time.Now()
	set := f.scan(ctx, rs)
	cost = time.Since(begun)
	rs.mu.Lock()
	defer rs.mu.Unlock()
	h.found(set)
	return cost
}

// scan looks for every chunk in the cache, as far as the map is here.
func (f *Fetcher) scan(ctx context.Context, rs *rootState) *content.Bitmap {
	var set content.Bitmap
	for leaf := range uint64(len(rs.leaves)) {
		n, err := f.localNode(ctx, rs, content.Pos{Level: 1, Index: leaf})
		if err != nil || n == nil {
			continue
		}
		for i, id := range n.Node.Entries {
			if !id.IsHole() && f.cfg.Cache.Has(id) {
				set.Add(leaf*content.MapFanout + uint64(i))
			}
		}
	}
	return &set
}

// holds reports how many chunks of a root are here, as far as is known.
func (f *Fetcher) holds(ctx context.Context, rs *rootState) uint64 {
	f.refresh(ctx, rs)
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.have.set.Len()
}

// announce decides again and again which roots this node announces, until ctx
// ends: of the farm's members that hold some of a root, the first two by
// rendezvous do.
func (f *Fetcher) announce(ctx context.Context) {
	if f.cfg.Swarm == nil {
		<-ctx.Done()
		return
	}
	announced := map[swarm.Key]bool{}
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	for {
		mine := map[swarm.Key]bool{}
		for _, rs := range f.all() {
			if !f.announces(ctx, rs) {
				continue
			}
			key := swarm.KeyFor(rs.head.Scope, rs.id, f.cfg.Announce()[0])
			mine[key] = true
			if announced[key] {
				continue
			}
			if err := f.cfg.Swarm.Announce(key); err != nil {
				f.cfg.Log.Warn("a root is not announced", "root", rs.id, "err", err)
				continue
			}
			announced[key] = true
		}
		for key := range announced {
			if !mine[key] {
				f.cfg.Swarm.Withdraw(key)
				delete(announced, key)
			}
		}
		select {
		case <-tick.C:
		case <-f.wake:
		case <-ctx.Done():
			for key := range announced {
				f.cfg.Swarm.Withdraw(key)
			}
			return
		}
	}
}

func (f *Fetcher) all() []*rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*rootState, 0, len(f.roots))
	for _, rs := range f.roots {
		out = append(out, rs)
	}
	return out
}

// announces reports whether this node is to announce a root.
func (f *Fetcher) announces(ctx context.Context, rs *rootState) bool {
	if f.holds(ctx, rs) == 0 {
		return false
	}
	candidates := rs.peers.holding()
	candidates = append(candidates, plan.Peer(f.cfg.Self))
	ranked := plan.Rank(rs.id.String(), candidates)
	return slices.Contains(ranked[:min(announcersPerFarm, len(ranked))], plan.Peer(f.cfg.Self))
}

// Hold reads the map of a root whose chunks were put into the cache beside the
// fetcher, as an importer does, and announces it at once.
func (f *Fetcher) Hold(ctx context.Context, root content.CID) error {
	m, err := f.Open(root)
	if err != nil {
		return err
	}
	for _, err := range m.CIDs(ctx) {
		if err != nil {
			return err
		}
	}
	f.rescan(ctx, m.rs)
	select {
	case f.wake <- struct{}{}:
	default: // it is about to look anyway
	}
	return nil
}

// Prepare looks for members that hold a root, for as long as prefetch would: a
// guest's first read then knows whom to ask.
func (f *Fetcher) Prepare(ctx context.Context, root content.CID) {
	rs := f.root(root)
	if rs == nil {
		return
	}
	rs.peers.want(rs)
	if rs.peers.settled() {
		return
	}
	wait := time.NewTimer(settleAfter)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}
