package shown

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
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
	// for again, searchSoon how often at first, and searchSoonTill for how long while
	// nobody was found: farms that want it at once find each other within seconds.
	searchInterval = 30 * time.Second
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
	// meetTimeout is how long a member may take to say who it is.
	meetTimeout = exchange.StallTimeout
)

// Announcements finds members that announced a root.
type Announcements interface {
	Find(context.Context, swarm.Key) iter.Seq[peer.AddrInfo]
}

// Config is what a Book is built from.
type Config struct {
	// Exchange returns how others are asked; nil asks nobody.
	Exchange func() *exchange.Exchange
	// Live returns the live members of this farm, as gossip says, this node included.
	Live func() []peer.ID
	// Swarm finds members elsewhere; nil finds none.
	Swarm Announcements
	Self  peer.ID
	// Farm is this node's, and Announce returns the secrets that roots are announced
	// under: the present one, then those before it that some still use.
	Farm     string
	Announce func() [][32]byte
	// Start runs a job whose context ends with the node, unless it has.
	Start func(func(context.Context)) bool
	// PassedOver reports whether a member is, Unmet is told of one that could not be
	// met, and why, and Lied of one that showed what there is not.
	PassedOver func(peer.ID) bool
	Unmet      func(peer.ID, error)
	Lied       func(peer.ID, string)
	Now        func() time.Time
	Log        *slog.Logger
}

// Root is what is to be known of a root to follow who holds it.
type Root struct {
	ID     content.CID
	Scope  content.Scope
	Chunks uint64
	// Lineage are the roots before it: who announced one of them may hold chunks.
	Lineage []content.CID
	// Record returns the sealed record, for members that have not met the root.
	Record func() []byte
}

// Peers follows who holds what of one root: the bitmaps of members of the farm,
// and of those that announced the root, or one before it, elsewhere. It does so
// while the root is wanted from others. Nobody is followed, or told of the root,
// who has not proved that it may read it. Safe for concurrent use.
type Peers struct {
	table
	cfg *Config
	r   Root

	mu        sync.Mutex // guards what follows
	following bool
	began     time.Time // the first time
	wanted    time.Time // the last time
	near, far group
	look      chan struct{} // a member of the farm may be new
	meeting   chan struct{} // closed when another member was met; nil while nobody waits
	found     []found       // the far members, in the order in which they were found
}

// found is a member that announced the root; a seed has no farm.
type found struct {
	peer plan.Peer
	farm string
}

// group is the members of this farm whose bitmaps are followed, or those elsewhere.
type group struct {
	far     bool
	watched map[peer.ID]bool
	met     map[peer.ID]bool // those that have answered once, or could not be reached
}

func newGroup(far bool) group {
	return group{far: far, watched: map[peer.ID]bool{}, met: map[peer.ID]bool{}}
}

// Peers returns who holds what of a root: nobody, until it is wanted.
func (b *Book) Peers(r Root) *Peers {
	return &Peers{table: table{book: b, held: map[plan.Peer]*bitmap{}}, cfg: &b.cfg, r: r, near: newGroup(false), far: newGroup(true), look: make(chan struct{}, 1)}
}

// Meet returns who a member is that is to be asked for a root of that scope, as its
// certificate says, and whether it is of this farm. It is ErrForbidden if it is
// nobody, or may not know of the root, or is not of this farm though its gossip says
// so.
func (b *Book) Meet(ctx context.Context, scope content.Scope, id peer.ID) (near bool, err error) {
	who, err := b.cfg.meet(ctx, scope, id)
	return b.cfg.isOurs(who), err
}

func (c *Config) meet(ctx context.Context, scope content.Scope, id peer.ID) (trust.Identity, error) {
	x := c.Exchange()
	if x == nil {
		return trust.Identity{}, errors.New("this node asks nobody")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, meetTimeout, fmt.Errorf("%w: it does not say who it is", exchange.ErrStalled))
	defer cancel()
	who, err := x.Meet(ctx, id)
	switch {
	case err != nil:
		return trust.Identity{}, err
	case !who.MayRead(scope):
		err = fmt.Errorf("%s: %w: it may not read content of scope %s", id, content.ErrForbidden, scope)
	case !c.isOurs(who) && c.isLive(id):
		err = fmt.Errorf("%s: %w: it is no member of this farm", id, content.ErrForbidden)
	}
	return who, err
}

// isOurs reports whether a certificate is one of this farm.
func (c *Config) isOurs(who trust.Identity) bool { return who.Role.IsMember() && who.Farm == c.Farm }

// isLive reports whether gossip lists a member as one of this farm.
func (c *Config) isLive(id peer.ID) bool { return slices.Contains(c.Live(), id) }

// Want begins to follow, or goes on.
func (p *Peers) Want() {
	if p.cfg.Exchange() == nil {
		return
	}
	p.mu.Lock()
	p.wanted = p.cfg.Now()
	begin := !p.following
	p.following = true
	if p.began.IsZero() {
		p.began = p.wanted
	}
	p.mu.Unlock()
	if begin {
		p.cfg.Start(p.follow)
	}
}

// Settled reports whether the first search has had its time.
func (p *Peers) Settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.Swarm == nil || p.cfg.Exchange() == nil || !p.began.IsZero() && p.cfg.Now().Sub(p.began) >= settleAfter
}

// follow searches for members and watches their bitmaps until the root has not
// been wanted for a while.
func (p *Peers) follow(ctx context.Context) {
	for again := true; again; {
		p.round(ctx)
		p.mu.Lock()
		again = !p.idle() && ctx.Err() == nil
		p.following = again
		p.mu.Unlock()
	}
}

// idle is called with mu.
func (p *Peers) idle() bool { return p.cfg.Now().Sub(p.wanted) >= followIdle }

func (p *Peers) round(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.cfg.Swarm != nil {
		p.again(ctx, &wg)
		wg.Go(func() { p.searchOn(ctx, &wg) })
	}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		for _, id := range p.cfg.Live() {
			if id != p.cfg.Self && p.claim(&p.near, id) {
				wg.Go(func() { p.watch(ctx, id, &p.near) })
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
func (p *Peers) again(ctx context.Context, wg *sync.WaitGroup) {
	p.mu.Lock()
	known := slices.Clone(p.found)
	p.mu.Unlock()
	for _, q := range known {
		if id := peer.ID(q.peer); p.claim(&p.far, id) {
			wg.Go(func() { p.watch(ctx, id, &p.far) })
		}
	}
}

// searchOn searches again and again until ctx ends.
func (p *Peers) searchOn(ctx context.Context, wg *sync.WaitGroup) {
	for ctx.Err() == nil {
		for _, root := range append([]content.CID{p.r.ID}, p.r.Lineage...) {
			p.search(ctx, root, wg)
		}
		select {
		case <-time.After(p.nextSearch()):
		case <-ctx.Done():
		}
	}
}

// nextSearch is when to search again: soon while nobody was found, then after as long
// as the root has been wanted.
func (p *Peers) nextSearch() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := p.cfg.Now().Sub(p.began)
	if len(p.found) == 0 && wanted < searchSoonTill {
		return searchSoon
	}
	return min(max(wanted, searchSoon), searchInterval)
}

// claim marks a member as watched; false when it is, or when enough are.
func (p *Peers) claim(g *group, id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g.watched[id] || len(g.watched) >= watchedMax {
		return false
	}
	g.watched[id] = true
	return true
}

func (p *Peers) release(g *group, id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(g.watched, id)
}

// search finds members of other farms that announced a root.
func (p *Peers) search(ctx context.Context, root content.CID, wg *sync.WaitGroup) {
	finding, cancel := context.WithTimeout(ctx, searchInterval)
	defer cancel()
	for _, secret := range p.cfg.Announce() {
		for info := range p.cfg.Swarm.Find(finding, swarm.KeyFor(p.r.Scope, root, secret)) {
			if info.ID != p.cfg.Self && !p.cfg.isLive(info.ID) && !p.cfg.PassedOver(info.ID) && p.claim(&p.far, info.ID) {
				wg.Go(func() { p.meetAndWatch(ctx, info.ID) })
			}
		}
		if p.r.Scope.IsPublic() { // announced under no secret
			return
		}
	}
}

// meetAndWatch meets a member that has announced the root, and watches its bitmap.
func (p *Peers) meetAndWatch(ctx context.Context, id peer.ID) {
	if _, err := p.cfg.meet(ctx, p.r.Scope, id); err != nil {
		p.cfg.Unmet(id, err)
		p.release(&p.far, id) // a later search tries again
		return
	}
	p.watch(ctx, id, &p.far)
}

// list adds a member that announced the root and answers: one that was met long ago
// may be gone, and its announcement outlives it. Only members of farms lead: what a
// seed may read it may hold, but it brings nothing in.
func (p *Peers) list(id peer.ID, who trust.Identity) {
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
func (p *Peers) unlist(id peer.ID) {
	p.found = slices.DeleteFunc(p.found, func(q found) bool { return q.peer == plan.Peer(id) })
}

// watch follows one member's bitmap until ctx ends or the member is gone: out of the
// farm, or silent for long. One whose bitmap is of no use shows nothing.
func (p *Peers) watch(ctx context.Context, id peer.ID, g *group) {
	defer p.release(g, id)
	for tries := 0; ctx.Err() == nil; tries++ {
		who, err := p.cfg.meet(ctx, p.r.Scope, id)
		known := err == nil
		if known {
			var heard bool
			if heard, err = p.take(ctx, id, who, g); heard {
				tries = 0
			}
		}
		pause := min(watchRetry, time.Duration(tries)*watchRetry+time.Millisecond)
		forbidden := errors.Is(err, content.ErrForbidden) || errors.Is(err, exchange.ErrViolation)
		useless := forbidden || errors.Is(err, content.ErrNoSpace)
		if tries > 0 || useless {
			p.meets(g, id)
		}
		if ctx.Err() != nil {
			return
		}
		if envelope := p.r.Record(); known && !useless && len(envelope) > 0 { // a member that has not met the root has nothing to show
			p.introduce(ctx, id, envelope)
		}
		if useless {
			p.cfg.Log.Debug("a member's bitmap is not followed", "peer", id, "root", p.r.ID, "err", err)
			p.Drop(plan.Peer(id))
			pause = uselessRetry
		}
		near := p.cfg.isLive(id)
		if !g.far && !near || g.far && (near || forbidden || tries >= watchTries) {
			p.forget(g, id)
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// introduce shows a member the record of the root. If that fails, so does the next
// try to follow it.
func (p *Peers) introduce(ctx context.Context, id peer.ID, envelope []byte) {
	ctx, cancel := context.WithTimeout(ctx, watchRetry)
	defer cancel()
	_ = p.cfg.Exchange().Introduce(ctx, id, envelope)
}

// meets notes that a member has answered, or could not be reached.
func (p *Peers) meets(g *group, id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g.met[id] = true
	if p.meeting != nil {
		close(p.meeting)
		p.meeting = nil
	}
}

// NearSettled reports whether the bitmaps of all live members of the farm, or of
// as many as are followed, have been seen; if not, at is closed when it may be so.
func (p *Peers) NearSettled() (at <-chan struct{}, settled bool) {
	if p.cfg.Exchange() == nil {
		return nil, true
	}
	live := p.cfg.Live()
	p.mu.Lock()
	defer p.mu.Unlock()
	strangers, unmet := false, false
	for _, id := range live {
		if id == p.cfg.Self {
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
func (p *Peers) take(ctx context.Context, id peer.ID, who trust.Identity, g *group) (heard bool, err error) {
	for b, err := range p.cfg.Exchange().Bitmaps(ctx, id, p.r.ID, p.r.Chunks) {
		if err == nil {
			err = p.Show(plan.Peer(id), g.far, !heard, b)
		}
		if errors.Is(err, exchange.ErrViolation) {
			p.cfg.Lied(id, err.Error())
		}
		if g.far && !heard && (err == nil || errors.Is(err, content.ErrNoSpace)) {
			p.list(id, who)
		}
		if err != nil {
			return heard, err
		}
		if !heard {
			p.meets(g, id)
		}
		heard = true
	}
	return heard, nil
}

// forget drops what a member held.
func (p *Peers) forget(g *group, id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Drop(plan.Peer(id))
	delete(g.met, id)
	if g.far {
		p.unlist(id)
	}
}

// Found returns the members that announced the root elsewhere, by farm, in the order
// in which they were found.
func (p *Peers) Found() map[string][]plan.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string][]plan.Peer{}
	for _, q := range p.found {
		if q.farm != "" {
			out[q.farm] = append(out[q.farm], q.peer)
		}
	}
	return out
}
