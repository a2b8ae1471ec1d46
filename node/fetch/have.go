package fetch

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/swarm"
)

const (
	// announceInterval is how often it is decided who announces which root.
	announceInterval = 5 * time.Second
	// announcersPerFarm announce a root: a second one outlives the first.
	announcersPerFarm = 2
	// rescanInterval bounds how often a bitmap is made anew after evictions.
	rescanInterval = 2 * time.Second
)

// have is which chunks of a root are here, guarded by the root's lock. It is made
// by looking at the cache, added to as chunks land, and made anew when the cache
// has evicted something.
type have struct {
	set     content.Bitmap
	scanned time.Time
	evicted uint64
}

// noteHave adds a chunk that has landed.
func (rs *rootState) noteHave(index uint64) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.have.set.Add(index)
}

// have returns a copy of the set.
func (f *Fetcher) have(ctx context.Context, rs *rootState) *content.Bitmap {
	now := f.cfg.Now()
	rs.mu.Lock()
	stale := rs.have.scanned.IsZero() || rs.have.evicted != f.cfg.Cache.Evicted()
	due := stale && now.Sub(rs.have.scanned) >= rescanInterval
	if due {
		rs.have.scanned, rs.have.evicted = now, f.cfg.Cache.Evicted()
	}
	rs.mu.Unlock()
	if due {
		set := f.scan(ctx, rs)
		rs.mu.Lock()
		rs.have.set = *set
		rs.mu.Unlock()
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.have.set.Clone()
}

// scan looks for every chunk in the cache, as far as the map is here.
func (f *Fetcher) scan(ctx context.Context, rs *rootState) *content.Bitmap {
	var set content.Bitmap
	for leaf := range uint64(len(rs.leaves)) {
		n, err := f.node(ctx, rs, content.Pos{Level: 1, Index: leaf}, request{local: true})
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
		for _, rs := range f.all() {
			key := swarm.KeyFor(rs.head.Scope, rs.id, f.cfg.Announce)
			switch lead := f.announces(ctx, rs); {
			case lead && !announced[key]:
				if err := f.cfg.Swarm.Announce(key); err != nil {
					f.cfg.Log.Warn("a root is not announced", "root", rs.id, "err", err)
					continue
				}
				announced[key] = true
			case !lead && announced[key]:
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
	b := f.have(ctx, rs)
	if b.Len() == 0 {
		return false
	}
	candidates := []plan.Peer{plan.Peer(f.cfg.Self)}
	rs.peers.mu.Lock()
	for id, b := range rs.peers.near {
		if b.Len() > 0 && f.isNear(peer.ID(id)) {
			candidates = append(candidates, plan.Peer(id))
		}
	}
	rs.peers.mu.Unlock()
	ranked := plan.Rank(rs.id.String(), candidates)
	for _, p := range ranked[:min(announcersPerFarm, len(ranked))] {
		if p == plan.Peer(f.cfg.Self) {
			return true
		}
	}
	return false
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
	set := f.scan(ctx, m.rs)
	m.rs.mu.Lock()
	m.rs.have.set, m.rs.have.scanned, m.rs.have.evicted = *set, f.cfg.Now(), f.cfg.Cache.Evicted()
	m.rs.mu.Unlock()
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
