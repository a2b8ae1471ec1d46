package fetch

import (
	"cmp"
	"context"
	"maps"
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
	// lookInterval is how often the farm's members are looked over for new ones.
	lookInterval = time.Second
	// searchInterval is how often the announcements of a root in use are searched
	// for again.
	searchInterval = 30 * time.Second
	// searchSoon is how often it is while nobody was found, at first.
	searchSoon     = time.Second
	searchSoonTill = 15 * time.Second
	// settleAfter is when the first search has had its time.
	settleAfter = plan.SwarmWait
	// followIdle is how long after the last want a root is followed: what was seen
	// is good for the next want's first questions.
	followIdle = 2 * time.Minute
	// watchRetry is how soon a member whose bitmap could not be had is tried again,
	// and watchTries how often one of another farm is before it is forgotten.
	watchRetry = 5 * time.Second
	watchTries = 6
	farmMethod = "farm"
)

// peers follows who holds what of one root: the bitmaps of members of the farm,
// and of those that announced the root, or one before it, elsewhere. It does so
// while the root is wanted from others.
type peers struct {
	f *Fetcher

	mu        sync.Mutex // guards what follows
	following bool
	began     time.Time // the first time
	wanted    time.Time // the last time
	near, far table
	look      chan struct{}          // a member of the farm may be new
	meeting   chan struct{}          // closed when another member was met; nil while nobody waits
	farms     map[string][]plan.Peer // of far members, in the order in which they were found
}

// table is the bitmaps of some members.
type table struct {
	held    map[peer.ID]*content.Bitmap
	watched map[peer.ID]bool
	met     map[peer.ID]bool // those that have answered once, or could not be reached
}

func newTable() table {
	return table{held: map[peer.ID]*content.Bitmap{}, watched: map[peer.ID]bool{}, met: map[peer.ID]bool{}}
}

func newPeers(f *Fetcher) *peers {
	return &peers{f: f, near: newTable(), far: newTable(), look: make(chan struct{}, 1), farms: map[string][]plan.Peer{}}
}

// want begins to follow, or goes on.
func (p *peers) want(rs *rootState) {
	if p.f.cfg.Exchange == nil {
		return
	}
	p.mu.Lock()
	p.wanted = p.f.cfg.Now()
	begin := !p.following
	p.following = true
	if p.began.IsZero() {
		p.began = p.wanted
	}
	p.mu.Unlock()
	if begin {
		p.f.start(func() { p.follow(rs) })
	}
}

// settled reports whether the first search has had its time.
func (p *peers) settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.f.cfg.Swarm == nil || p.f.cfg.Exchange == nil || !p.began.IsZero() && p.f.cfg.Now().Sub(p.began) >= settleAfter
}

// follow searches for members and watches their bitmaps until the root has not
// been wanted for a while.
func (p *peers) follow(rs *rootState) {
	for again := true; again; {
		p.round(rs)
		p.mu.Lock()
		again = !p.idle() && p.f.ctx.Err() == nil
		p.following = again
		p.mu.Unlock()
	}
}

// idle is called with mu.
func (p *peers) idle() bool { return p.f.cfg.Now().Sub(p.wanted) >= followIdle }

func (p *peers) round(rs *rootState) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(p.f.ctx)
	defer cancel()
	if p.f.cfg.Swarm != nil {
		p.again(ctx, rs, &wg)
		wg.Go(func() { p.searchOn(ctx, rs, &wg) })
	}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		for _, id := range p.f.cfg.Members.Live() {
			if id != p.f.cfg.Self && p.claim(&p.near, id) {
				wg.Go(func() { p.watch(ctx, rs, id, &p.near) })
			}
		}
		select {
		case <-tick.C:
		case <-p.look:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		idle := p.idle()
		p.mu.Unlock()
		if idle {
			return
		}
	}
}

// again watches the far members of the round before: one that has gone meanwhile
// announces nothing that would have it found, and forgotten, anew.
func (p *peers) again(ctx context.Context, rs *rootState, wg *sync.WaitGroup) {
	p.mu.Lock()
	known := slices.Concat(slices.Collect(maps.Values(p.farms))...)
	p.mu.Unlock()
	for _, q := range known {
		if id := peer.ID(q); p.claim(&p.far, id) {
			wg.Go(func() { p.watch(ctx, rs, id, &p.far) })
		}
	}
}

// searchOn searches again and again until ctx ends.
func (p *peers) searchOn(ctx context.Context, rs *rootState, wg *sync.WaitGroup) {
	for ctx.Err() == nil {
		for _, root := range append([]content.CID{rs.id}, rs.lineage...) {
			p.search(ctx, rs, root, wg)
		}
		wait := time.NewTimer(p.nextSearch())
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
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
func (p *peers) claim(t *table, id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.watched[id] || len(t.watched) >= watchedMax {
		return false
	}
	t.watched[id] = true
	return true
}

func (p *peers) release(t *table, id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(t.watched, id)
}

// search finds members of other farms that announced a root.
func (p *peers) search(ctx context.Context, rs *rootState, root content.CID, wg *sync.WaitGroup) {
	finding, cancel := context.WithTimeout(ctx, searchInterval)
	defer cancel()
	for _, secret := range p.f.cfg.Announce() {
		for info := range p.f.cfg.Swarm.Find(finding, swarm.KeyFor(rs.head.Scope, root, secret)) {
			if info.ID == p.f.cfg.Self || p.f.isNear(info.ID) || !p.claim(&p.far, info.ID) {
				continue
			}
			wg.Go(func() {
				if !p.meet(ctx, info.ID) {
					p.release(&p.far, info.ID) // the next search tries again
					return
				}
				p.watch(ctx, rs, info.ID, &p.far)
			})
		}
	}
}

// meet asks a member for its farm and lists it.
func (p *peers) meet(ctx context.Context, id peer.ID) bool {
	ctx, cancel := context.WithTimeout(ctx, watchRetry)
	defer cancel()
	name, err := p.f.cfg.Exchange.Call(ctx, id, farmMethod, nil)
	if err != nil || len(name) > content.NameMax {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if list := p.farms[string(name)]; !slices.Contains(list, plan.Peer(id)) {
		p.farms[string(name)] = append(list, plan.Peer(id))
	}
	return true
}

// watch follows one member's bitmap into its table until ctx ends or the member is
// gone: out of the farm, or silent for long.
func (p *peers) watch(ctx context.Context, rs *rootState, id peer.ID, t *table) {
	defer p.release(t, id)
	for tries := 0; ctx.Err() == nil; tries++ {
		if p.take(ctx, rs, id, t) {
			tries = 0
		}
		if tries > 0 {
			p.meets(t, id)
		}
		if ctx.Err() != nil {
			return
		}
		if envelope := rs.sealed(); len(envelope) > 0 { // a member that has not met the root has nothing to show
			_ = p.f.cfg.Exchange.Introduce(ctx, id, envelope) // if that fails, so does the next try
		}
		wait := time.NewTimer(min(watchRetry, time.Duration(tries)*watchRetry+time.Millisecond))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		near := p.f.isNear(id)
		if t == &p.near && !near || t == &p.far && (near || tries >= watchTries) {
			p.forget(t, id)
			return
		}
	}
}

// meets notes that a member has answered, or could not be reached.
func (p *peers) meets(t *table, id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.met[id] = true
	if p.meeting != nil {
		close(p.meeting)
		p.meeting = nil
	}
}

// nearSettled reports whether the bitmaps of all live members of the farm, or of
// as many as are followed, have been seen; if not, at is closed when it may be so.
func (p *peers) nearSettled() (at <-chan struct{}, settled bool) {
	if p.f.cfg.Exchange == nil {
		return nil, true
	}
	live := p.f.cfg.Members.Live()
	p.mu.Lock()
	defer p.mu.Unlock()
	strangers, unmet := false, false
	for _, id := range live {
		if id == p.f.cfg.Self {
			continue
		}
		stranger := !p.near.watched[id] && len(p.near.watched) < watchedMax
		strangers = strangers || stranger
		unmet = unmet || stranger || p.near.watched[id] && !p.near.met[id]
	}
	if strangers {
		select {
		case p.look <- struct{}{}:
		default: // it is about to look anyway
		}
	}
	if unmet && p.meeting == nil {
		p.meeting = make(chan struct{})
	}
	return p.meeting, !unmet
}

// take adds what a member says that it holds, until it says no more; whether it
// has said anything is returned.
func (p *peers) take(ctx context.Context, rs *rootState, id peer.ID, t *table) (heard bool) {
	for b, err := range p.f.cfg.Exchange.Bitmaps(ctx, id, rs.id) {
		if err != nil {
			break
		}
		p.mu.Lock()
		if have := t.held[id]; have == nil || !heard {
			t.held[id] = b.Clone()
		} else {
			have.Union(b)
		}
		p.mu.Unlock()
		if !heard {
			p.meets(t, id)
		}
		heard = true
	}
	return heard
}

// forget drops what a member held.
func (p *peers) forget(t *table, id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(t.held, id)
	delete(t.met, id)
	if t == &p.far {
		for name, list := range p.farms {
			if p.farms[name] = slices.DeleteFunc(list, func(q plan.Peer) bool { return q == plan.Peer(id) }); len(p.farms[name]) == 0 {
				delete(p.farms, name)
			}
		}
	}
}

// lacks notes what a member turned out not to hold, whatever its bitmap said: it
// may have evicted it.
func (p *peers) lacks(id peer.ID, indexes []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, held := range []map[peer.ID]*content.Bitmap{p.near.held, p.far.held} {
		if b := held[id]; b != nil {
			for _, i := range indexes {
				b.Remove(i)
			}
		}
	}
}

// holding returns the live members of the farm that hold some of the root.
func (p *peers) holding() []plan.Peer {
	live := p.f.live()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(live, func(q plan.Peer) bool {
		b := p.near.held[peer.ID(q)]
		return b == nil || b.Len() == 0
	})
}

// view tells the planner who holds what is missing.
func (p *peers) view(v *plan.View, missing []uint64, level int) {
	v.SwarmSettled = p.settled()
	_, v.FarmSettled = p.nearSettled()
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, list := range p.farms {
		v.Swarm[name] = slices.Clone(list)
	}
	if level > 0 { // a map node goes with the chunks that it names
		missing = nil
	}
	v.Holders = p.near.holders(missing)
	v.SwarmHolders = p.far.holders(missing)
}

// holders orders members by how much of what is missing they hold; none of it
// leaves a member out. Without anything missing, those that hold most come first.
// Members that hold the same take turns: who comes first changes with what is
// missing.
func (t *table) holders(missing []uint64) []plan.Peer {
	key := "map"
	if len(missing) > 0 {
		key = content.Chunk(missing[0]).String()
	}
	holds := map[plan.Peer]uint64{}
	var list []plan.Peer
	for id, b := range t.held {
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
			holds[plan.Peer(id)] = n
			list = append(list, plan.Peer(id))
		}
	}
	list = plan.Rank(key, list)
	slices.SortStableFunc(list, func(a, b plan.Peer) int { return cmp.Compare(holds[b], holds[a]) })
	return list
}
