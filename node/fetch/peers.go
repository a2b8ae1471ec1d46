package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/shown"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
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
	// uselessRetry is how soon one whose bitmap is of no use is looked at again.
	uselessRetry = time.Minute
	// strangerAside is how long one that did not prove that it may be asked is passed
	// over: a certificate may yet come.
	strangerAside = time.Minute
	// meetTimeout is how long a member may take to say who it is.
	meetTimeout = exchange.StallTimeout
)

// peers follows who holds what of one root: the bitmaps of members of the farm,
// and of those that announced the root, or one before it, elsewhere. It does so
// while the root is wanted from others.
type peers struct {
	f     *Fetcher
	shown *shown.Table

	mu        sync.Mutex // guards what follows
	following bool
	began     time.Time // the first time
	wanted    time.Time // the last time
	near, far table
	look      chan struct{} // a member of the farm may be new
	meeting   chan struct{} // closed when another member was met; nil while nobody waits
	found     []found       // the far members, in the order in which they were found
}

// found is a member that announced the root; a seed has no farm.
type found struct {
	peer plan.Peer
	farm string
}

// table is the members whose bitmaps are followed.
type table struct {
	far     bool
	watched map[peer.ID]bool
	met     map[peer.ID]bool // those that have answered once, or could not be reached
}

func newTable(far bool) table {
	return table{far: far, watched: map[peer.ID]bool{}, met: map[peer.ID]bool{}}
}

func newPeers(f *Fetcher) *peers {
	return &peers{f: f, shown: f.shown.Table(), near: newTable(false), far: newTable(true), look: make(chan struct{}, 1)}
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
	known := slices.Clone(p.found)
	p.mu.Unlock()
	for _, q := range known {
		if id := peer.ID(q.peer); p.claim(&p.far, id) {
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
	if len(p.found) == 0 && p.f.cfg.Now().Sub(p.began) < searchSoonTill {
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
	for info := range p.f.cfg.Swarm.Find(finding, swarm.KeyFor(rs.head.Scope, root, p.f.cfg.Announce)) {
		if info.ID == p.f.cfg.Self || p.f.isNear(info.ID) || p.f.passedOver(info.ID) || !p.claim(&p.far, info.ID) {
			continue
		}
		wg.Go(func() {
			who, err := p.f.meet(ctx, rs, info.ID)
			if err != nil {
				p.f.blame(info.ID, err)
				p.release(&p.far, info.ID) // a later search tries again
				return
			}
			p.list(info.ID, who)
			p.watch(ctx, rs, info.ID, &p.far)
		})
	}
}

// meet returns who a member is that is to be asked for a root, as its certificate
// says; ErrForbidden if it is nobody, or may not know of the root, or is not of this
// farm though its gossip says so.
func (f *Fetcher) meet(ctx context.Context, rs *rootState, id peer.ID) (trust.Identity, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, meetTimeout, fmt.Errorf("%w: it does not say who it is", exchange.ErrStalled))
	defer cancel()
	who, err := f.cfg.Exchange.Meet(ctx, id)
	switch {
	case err != nil:
		return who, err
	case !who.MayRead(rs.head.Scope):
		return who, fmt.Errorf("%s: %w: it may not read content of scope %s", id, content.ErrForbidden, rs.head.Scope)
	case !f.ofFarm(who) && f.isNear(id):
		return who, fmt.Errorf("%s: %w: it is no member of this farm", id, content.ErrForbidden)
	}
	return who, nil
}

// blame has a member passed over that could not be met.
func (f *Fetcher) blame(id peer.ID, err error) {
	if !errors.Is(err, content.ErrForbidden) {
		f.failed(id)
		return
	}
	f.cfg.Log.Debug("a peer is not asked", "peer", id, "err", err)
	f.habits.mu.Lock()
	defer f.habits.mu.Unlock()
	f.habits.breaker.Aside(plan.Peer(id), f.cfg.Now(), strangerAside)
}

func (f *Fetcher) passedOver(id peer.ID) bool {
	_, aside := f.Aside()[id]
	return aside
}

// ofFarm reports whether a certificate is one of this farm.
func (f *Fetcher) ofFarm(who trust.Identity) bool {
	return who.Role.IsMember() && who.Farm == f.cfg.Identity.Farm
}

// list adds a member that announced the root. Only members of farms lead: what a
// seed may read it may hold, but it brings nothing in.
func (p *peers) list(id peer.ID, who trust.Identity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	farm := who.Farm
	if !who.Role.IsMember() {
		farm = ""
	}
	p.unlist(id)
	p.found = append(p.found, found{plan.Peer(id), farm})
}

// unlist is called with mu.
func (p *peers) unlist(id peer.ID) {
	p.found = slices.DeleteFunc(p.found, func(q found) bool { return q.peer == plan.Peer(id) })
}

// watch follows one member's bitmap until ctx ends or the member is gone: out of the
// farm, or silent for long. One whose bitmap is of no use shows nothing.
func (p *peers) watch(ctx context.Context, rs *rootState, id peer.ID, t *table) {
	defer p.release(t, id)
	for tries := 0; ctx.Err() == nil; tries++ {
		_, err := p.f.meet(ctx, rs, id)
		known := err == nil
		if known {
			var heard bool
			if heard, err = p.take(ctx, rs, id, t); heard {
				tries = 0
			}
		}
		pause := min(watchRetry, time.Duration(tries)*watchRetry+time.Millisecond)
		forbidden := errors.Is(err, content.ErrForbidden) || errors.Is(err, exchange.ErrViolation)
		useless := forbidden || errors.Is(err, content.ErrNoSpace)
		if tries > 0 || useless {
			p.meets(t, id)
		}
		if ctx.Err() != nil {
			return
		}
		if envelope := rs.sealed(); known && !useless && len(envelope) > 0 { // a member that has not met the root has nothing to show
			p.introduce(ctx, id, envelope)
		}
		if useless {
			p.f.cfg.Log.Debug("a member's bitmap is not followed", "peer", id, "root", rs.id, "err", err)
			p.shown.Drop(plan.Peer(id))
			pause = uselessRetry
		}
		near := p.f.isNear(id)
		if !t.far && !near || t.far && (near || forbidden || tries >= watchTries) {
			p.forget(t, id)
			return
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
	}
}

// introduce shows a member the record of the root. If that fails, so does the next
// try to follow it.
func (p *peers) introduce(ctx context.Context, id peer.ID, envelope []byte) {
	ctx, cancel := context.WithTimeout(ctx, watchRetry)
	defer cancel()
	_ = p.f.cfg.Exchange.Introduce(ctx, id, envelope)
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
// has said anything is returned, and why it ended.
func (p *peers) take(ctx context.Context, rs *rootState, id peer.ID, t *table) (heard bool, err error) {
	for b, err := range p.f.cfg.Exchange.Bitmaps(ctx, id, rs.id, rs.head.Root.Chunks()) {
		if err == nil {
			err = p.shown.Show(plan.Peer(id), t.far, !heard, b)
		}
		if errors.Is(err, exchange.ErrViolation) {
			p.f.lied(id, err.Error())
		}
		if err != nil {
			return heard, err
		}
		if !heard {
			p.meets(t, id)
		}
		heard = true
	}
	return heard, nil
}

// forget drops what a member held.
func (p *peers) forget(t *table, id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown.Drop(plan.Peer(id))
	delete(t.met, id)
	if t == &p.far {
		p.unlist(id)
	}
}

// holding returns the live members of the farm that hold some of the root.
func (p *peers) holding() []plan.Peer {
	shown := p.shown.Counts()
	return slices.DeleteFunc(p.f.live(), func(q plan.Peer) bool { return shown[q] == 0 })
}

// view tells the planner who holds what is missing.
func (p *peers) view(v *plan.View, missing []uint64, level int) {
	v.SwarmSettled = p.settled()
	_, v.FarmSettled = p.nearSettled()
	if level > 0 { // a map node goes with the chunks that it names
		missing = nil
	}
	v.Holders, v.SwarmHolders = p.shown.Holders(missing)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.found {
		if q.farm != "" {
			v.Swarm[q.farm] = append(v.Swarm[q.farm], q.peer)
		}
	}
}
