package fetch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/swarm"
)

const (
	// watchedMax bounds the members whose bitmaps are followed for a root, in the
	// farm and outside it each.
	watchedMax = 32
	// searchInterval is how often the announcements of a root in use are searched
	// for again.
	searchInterval = 30 * time.Second
	// searchSoon is how often it is while nobody was found, at first.
	searchSoon     = time.Second
	searchSoonTill = 15 * time.Second
	// settleAfter is when the first search has had its time.
	settleAfter = plan.SwarmWait
	// watchRetry is how soon a member whose bitmap could not be had is tried again.
	watchRetry = 5 * time.Second
	farmMethod = "farm"
)

// peers follows who holds what of one root: the bitmaps of members of the farm,
// and of those that announced the root elsewhere. It begins when the root is
// first wanted from others and goes on while the node runs.
type peers struct {
	f *Fetcher

	mu      sync.Mutex // guards what follows
	began   time.Time
	near    map[peer.ID]*content.Bitmap
	far     map[peer.ID]*content.Bitmap
	farms   map[string][]plan.Peer // of far members, in the order in which they were found
	watched map[peer.ID]bool
}

func newPeers(f *Fetcher) *peers {
	return &peers{f: f, near: map[peer.ID]*content.Bitmap{}, far: map[peer.ID]*content.Bitmap{}, farms: map[string][]plan.Peer{}, watched: map[peer.ID]bool{}}
}

// want begins to follow, once.
func (p *peers) want(rs *rootState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.began.IsZero() || p.f.cfg.Exchange == nil {
		return
	}
	p.began = p.f.cfg.Now()
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if p.f.ctx.Err() != nil {
		return
	}
	p.f.running.Go(func() { p.follow(p.f.ctx, rs) })
}

// settled reports whether the first search has had its time.
func (p *peers) settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.f.cfg.Swarm == nil || !p.began.IsZero() && p.f.cfg.Now().Sub(p.began) >= settleAfter
}

// follow searches for members and watches their bitmaps until ctx ends.
func (p *peers) follow(ctx context.Context, rs *rootState) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, id := range p.f.cfg.Members.Live() {
			if id != p.f.cfg.Self && p.claim(id) {
				wg.Go(func() { p.watch(ctx, rs, id, p.near) })
			}
		}
		if p.f.cfg.Swarm != nil {
			for _, root := range append([]content.CID{rs.id}, rs.lineage...) {
				p.search(ctx, rs, root, &wg)
			}
		}
		select {
		case <-time.After(p.nextSearch()):
		case <-ctx.Done():
			return
		}
	}
}

// nextSearch is when to search again: soon while nobody was found.
func (p *peers) nextSearch() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.farms) == 0 && p.f.cfg.Now().Sub(p.began) < searchSoonTill {
		return searchSoon
	}
	return searchInterval
}

// claim marks a member as watched; false when it is, or when enough are.
func (p *peers) claim(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watched[id] || len(p.watched) >= 2*watchedMax {
		return false
	}
	p.watched[id] = true
	return true
}

// search finds members of other farms that announced a root.
func (p *peers) search(ctx context.Context, rs *rootState, root content.CID, wg *sync.WaitGroup) {
	ctx, cancel := context.WithTimeout(ctx, searchInterval)
	defer cancel()
	for info := range p.f.cfg.Swarm.Find(ctx, swarm.KeyFor(rs.head.Scope, root, p.f.cfg.Announce)) {
		if info.ID == p.f.cfg.Self || p.f.isNear(info.ID) || !p.claim(info.ID) {
			continue
		}
		wg.Go(func() {
			if p.meet(p.f.ctx, info.ID) {
				p.watch(p.f.ctx, rs, info.ID, p.far)
			}
		})
	}
}

// meet asks a member for its farm and lists it.
func (p *peers) meet(ctx context.Context, id peer.ID) bool {
	ctx, cancel := context.WithTimeout(ctx, watchRetry)
	defer cancel()
	name, err := p.f.cfg.Exchange.Call(ctx, id, farmMethod, nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil || len(name) > content.NameMax {
		delete(p.watched, id) // the next search tries again
		return false
	}
	p.farms[string(name)] = append(p.farms[string(name)], plan.Peer(id))
	return true
}

// watch follows one member's bitmap into a table until ctx ends or it is gone.
func (p *peers) watch(ctx context.Context, rs *rootState, id peer.ID, into map[peer.ID]*content.Bitmap) {
	for ctx.Err() == nil {
		for b, err := range p.f.cfg.Exchange.Bitmaps(ctx, id, rs.id) {
			if err != nil {
				break
			}
			p.mu.Lock()
			if have := into[id]; have == nil {
				into[id] = b.Clone()
			} else {
				have.Union(b)
			}
			p.mu.Unlock()
		}
		rs.mu.Lock()
		envelope := rs.envelope
		rs.mu.Unlock()
		if len(envelope) > 0 && ctx.Err() == nil {
			p.f.cfg.Exchange.Introduce(ctx, id, envelope) // a member that has not met the root has nothing to show
		}
		select {
		case <-time.After(watchRetry):
		case <-ctx.Done():
		}
		p.mu.Lock()
		delete(into, id)
		gone := !p.f.isNear(id) && len(p.f.cfg.Members.Live()) > 0 && !p.isFar(id)
		if gone {
			delete(p.watched, id)
		}
		p.mu.Unlock()
		if gone {
			return
		}
	}
}

// isFar is called with mu.
func (p *peers) isFar(id peer.ID) bool {
	for _, list := range p.farms {
		if slices.Contains(list, plan.Peer(id)) {
			return true
		}
	}
	return false
}

// view tells the planner who holds what is missing: all of it first, then some.
func (p *peers) view(v *plan.View, missing []uint64, level int) {
	v.SwarmSettled = p.settled()
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, list := range p.farms {
		v.Swarm[name] = slices.Clone(list)
	}
	if level > 0 { // a map node goes with the chunks that it names
		missing = []uint64{}
	}
	v.Holders = holders(p.near, missing)
	v.SwarmHolders = holders(p.far, missing)
}

// holders orders members by how much of what is missing they hold; none of it
// leaves a member out. Without anything missing, those that hold most come
// first.
func holders(all map[peer.ID]*content.Bitmap, missing []uint64) []plan.Peer {
	type holder struct {
		peer  plan.Peer
		holds uint64
	}
	var list []holder
	for id, b := range all {
		n := b.Len()
		if len(missing) > 0 {
			n = 0
			for _, i := range missing {
				if b.Has(i) {
					n++
				}
			}
		}
		if n > 0 {
			list = append(list, holder{plan.Peer(id), n})
		}
	}
	slices.SortFunc(list, func(a, b holder) int {
		if a.holds != b.holds {
			return int(int64(b.holds) - int64(a.holds))
		}
		return compareByRun(a.peer, b.peer, missing)
	})
	out := make([]plan.Peer, len(list))
	for i, h := range list {
		out[i] = h.peer
	}
	return out
}

// compareByRun spreads the load of members that hold the same: which one comes
// first changes with what is missing.
func compareByRun(a, b plan.Peer, missing []uint64) int {
	key := "bitmap"
	if len(missing) > 0 {
		key = content.Chunk(missing[0] / 8).String()
	}
	if plan.Rank(key, []plan.Peer{a, b})[0] == a {
		return -1
	}
	return 1
}
