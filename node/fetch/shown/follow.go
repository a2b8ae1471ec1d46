// Package shown follows what members show of roots: bitmaps of the chunks that they
// hold, which they send and let grow as they like. Whom to follow and for how long the
// planner says; this package meets, searches and listens.
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

	"github.com/grangemesh/grange/node/fetch/patience"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

const (
	// lookInterval is how often the farm's members are looked over for new ones.
	lookInterval = time.Second
	// searchTimeout ends a search, and introduceTimeout what a member takes to read a
	// record; meetTimeout is how long one may take to say who it is.
	searchTimeout    = 30 * time.Second
	introduceTimeout = 5 * time.Second
	meetTimeout      = exchange.StallTimeout
)

// Config is what a Book is built from.
type Config struct {
	// Exchange returns how others are asked; nil asks nobody.
	Exchange func() *exchange.Exchange
	// Live returns the live members of this farm, as gossip says, this node included.
	Live func() []peer.ID
	// Find finds members elsewhere that announced a root; nil finds none.
	Find func(context.Context, swarm.Key) iter.Seq[peer.AddrInfo]
	// Peers returns the members that are in reach; for who has Find.
	Peers func() []peer.AddrInfo
	// Farm is this node's, and Announce returns the secrets that roots are announced
	// under: the present one, then those before it that some still use.
	Farm     string
	Announce func(content.Scope) [][32]byte
	// Start runs a job whose context ends with the node, unless it has.
	Start func(func(context.Context)) bool
	// Wanted is told that a root is wanted that was not lately.
	Wanted func()
	// Think runs a function that tells the planner of something, one at a time.
	Think func(func(*plan.Member))
	// Unmet is told of a member that could not be met, and why, and Lied of one that
	// showed what there is not.
	Unmet func(peer.ID, error)
	Lied  func(peer.ID, string)
	Now   func() time.Time
	Log   *slog.Logger
}

// Book is who shows what, of all roots of a node. Safe for concurrent use.
type Book struct{ cfg Config }

// New returns an empty Book.
func New(cfg Config) *Book { return &Book{cfg} }

// Root is what is to be known of a root to follow who holds it.
type Root struct {
	ID     content.CID
	Scope  content.Scope
	Chunks uint64
	// Lineage are the roots before it: who announced one of them may hold chunks.
	Lineage []content.CID
	// Record returns the sealed record, for members that have not met the root.
	Record func() []byte
	// Near is told of what members of this farm show.
	Near func(*content.Bitmap)
}

// Peers follows who holds what of one root: the bitmaps of members of the farm,
// and of those that announced the root, or one before it, elsewhere. It does so
// while the root is wanted from others. Nobody is followed, or told of the root,
// who has not proved that it may read it. Safe for concurrent use.
type Peers struct {
	cfg *Config
	r   Root
	// Mind is what the planner knows of it. It is for use within Think.
	Mind *plan.Root

	look chan struct{} // a member of the farm may be new
	met  patience.Bell // another member was met
}

// Peers returns who holds what of a root: nobody, until it is wanted.
func (b *Book) Peers(r Root) *Peers {
	p := &Peers{cfg: &b.cfg, r: r, look: make(chan struct{}, 1)}
	key := swarm.KeyFor(r.Scope, r.ID, b.cfg.Announce(r.Scope)[0])
	b.cfg.Think(func(m *plan.Member) { p.Mind = m.Root(string(key[:])) })
	return p
}

// ask returns what the planner says.
func ask[T any](p *Peers, what func(*plan.Root) T) (answer T) {
	p.cfg.Think(func(*plan.Member) { answer = what(p.Mind) })
	return answer
}

// Meet returns who a member is that is to be asked for a root of that scope, as its
// certificate says, and whether it is of this farm. It is ErrForbidden if it is
// nobody, or may not know of the root, or is not of this farm though its gossip says
// so.
func (b *Book) Meet(ctx context.Context, scope content.Scope, id peer.ID) (near bool, err error) {
	who, err := b.cfg.meet(ctx, scope, id)
	if near = b.cfg.isOurs(who); near && err == nil {
		b.cfg.Think(func(m *plan.Member) { m.Seen(plan.Peer(id), b.cfg.Now()) })
	}
	return near, err
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
	case !c.isOurs(who) && slices.Contains(c.Live(), id):
		err = fmt.Errorf("%s: %w: it is no member of this farm", id, content.ErrForbidden)
	}
	return who, err
}

func (c *Config) isOurs(who trust.Identity) bool { return who.Role.IsMember() && who.Farm == c.Farm }

// Want begins to follow, or goes on.
func (p *Peers) Want() {
	if ask(p, func(r *plan.Root) bool { return r.Want(p.cfg.Now()) }) {
		p.cfg.Wanted()
		p.cfg.Start(p.follow) // or the node is ending
	}
}

// SettlesIn is how long until the first search has had its time.
func (p *Peers) SettlesIn() time.Duration {
	return ask(p, func(r *plan.Root) time.Duration { return r.SettlesIn(p.cfg.Now()) })
}

// Settle waits until announcements have had their time, or ctx ends.
func (p *Peers) Settle(ctx context.Context) {
	for left := p.SettlesIn(); left > 0 && ctx.Err() == nil; left = p.SettlesIn() {
		select {
		case <-time.After(min(left, plan.SettleLook)):
		case <-ctx.Done():
		}
	}
}

// follow searches for members and watches their bitmaps until the root has not
// been wanted for a while.
func (p *Peers) follow(ctx context.Context) {
	for again := true; again; {
		p.round(ctx)
		again = ask(p, func(r *plan.Root) bool {
			if ctx.Err() != nil {
				r.Rest()
			}
			return r.Follows(p.cfg.Now())
		})
	}
}

func (p *Peers) round(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.cfg.Find != nil {
		for _, q := range ask(p, (*plan.Root).Again) {
			wg.Go(func() { p.watch(ctx, peer.ID(q), true) })
		}
		wg.Go(func() { p.searchOn(ctx, &wg) })
	}
	tick := time.Tick(lookInterval)
	for {
		for _, q := range ask(p, (*plan.Root).Strangers) {
			wg.Go(func() { p.watch(ctx, peer.ID(q), false) })
		}
		select {
		case <-tick:
		case <-p.look:
		case <-ctx.Done():
			return
		}
		if !ask(p, func(r *plan.Root) bool { return r.Wanted(p.cfg.Now()) }) {
			return
		}
	}
}

// searchOn searches again and again until ctx ends.
func (p *Peers) searchOn(ctx context.Context, wg *sync.WaitGroup) {
	for ctx.Err() == nil {
		for _, root := range append([]content.CID{p.r.ID}, p.r.Lineage...) {
			p.search(ctx, root, wg)
		}
		live := p.cfg.Live()
		others := slices.ContainsFunc(p.cfg.Peers(), func(q peer.AddrInfo) bool { return !slices.Contains(live, q.ID) })
		p.cfg.Think(func(*plan.Member) { p.Mind.Searched(others) })
		select {
		case <-time.After(ask(p, func(r *plan.Root) time.Duration { return r.NextSearch(p.cfg.Now()) })):
		case <-ctx.Done():
		}
	}
}

// search finds members of other farms that announced a root.
func (p *Peers) search(ctx context.Context, root content.CID, wg *sync.WaitGroup) {
	finding, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	for _, secret := range p.cfg.Announce(p.r.Scope) {
		for info := range p.cfg.Find(finding, swarm.KeyFor(p.r.Scope, root, secret)) {
			if ask(p, func(r *plan.Root) bool { return r.Announced(plan.Peer(info.ID), p.cfg.Now()) }) {
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
		p.release(id, true) // a later search tries again
		return
	}
	p.watch(ctx, id, true)
}

func (p *Peers) release(id peer.ID, far bool) {
	p.cfg.Think(func(*plan.Member) { p.Mind.Release(plan.Peer(id), far) })
}

// watch follows one member's bitmap until ctx ends or the planner forgets the member.
// One whose bitmap is of no use shows nothing.
func (p *Peers) watch(ctx context.Context, id peer.ID, far bool) {
	defer p.release(id, far)
	for tries := 0; ctx.Err() == nil; tries++ {
		who, err := p.cfg.meet(ctx, p.r.Scope, id)
		known := err == nil
		if known {
			var heard bool
			if heard, err = p.take(ctx, id, who, far); heard {
				tries = 0
			}
		}
		if ctx.Err() != nil {
			return
		}
		w := plan.Watched{Far: far, Tries: tries, Forbidden: errors.Is(err, content.ErrForbidden) || errors.Is(err, exchange.ErrViolation)}
		w.Useless = w.Forbidden || errors.Is(err, content.ErrNoSpace)
		if w.Useless {
			p.cfg.Log.Debug("a member's bitmap is not followed", "peer", id, "root", p.r.ID, "err", err)
		} else if envelope := p.r.Record(); known && len(envelope) > 0 { // a member that has not met the root has nothing to show
			p.introduce(ctx, id, envelope)
		}
		var pause time.Duration
		var on bool
		p.cfg.Think(func(*plan.Member) {
			pause, on = p.Mind.Watch(plan.Peer(id), w)
			p.met.Ring()
		})
		if !on {
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
	ctx, cancel := context.WithTimeout(ctx, introduceTimeout)
	defer cancel()
	_ = p.cfg.Exchange().Introduce(ctx, id, envelope)
}

// NearSettled reports whether the bitmaps of all live members of the farm, or of
// as many as are followed, have been seen; if not, at is closed when it may be so.
func (p *Peers) NearSettled() (at <-chan struct{}, settled bool) {
	p.cfg.Think(func(*plan.Member) {
		var strangers bool
		if settled, strangers = p.Mind.NearSettled(); strangers {
			select {
			case p.look <- struct{}{}:
			default: // it is about to look anyway
			}
		}
		at = p.met.Wait()
	})
	return at, settled
}

// take adds what a member says that it holds, until it says no more; whether it
// has said anything is returned, and why it ended. What a seed may read it may hold, but
// it leads nothing, as it is of no farm.
func (p *Peers) take(ctx context.Context, id peer.ID, who trust.Identity, far bool) (heard bool, err error) {
	farm := who.Farm
	if !who.Role.IsMember() {
		farm = ""
	}
	for b, err := range p.cfg.Exchange().Bitmaps(ctx, id, p.r.ID, p.r.Chunks) {
		if errors.Is(err, exchange.ErrViolation) {
			p.cfg.Lied(id, err.Error())
		}
		if err == nil && !far {
			p.r.Near(b)
		}
		p.cfg.Think(func(*plan.Member) {
			if err == nil {
				err = p.Mind.Show(plan.Peer(id), far, !heard, b)
			}
			if far && !heard && (err == nil || errors.Is(err, content.ErrNoSpace)) {
				p.Mind.List(plan.Peer(id), farm)
			}
			if err == nil && !heard {
				p.Mind.Met(plan.Peer(id), far)
				p.met.Ring()
			}
		})
		if err != nil {
			return heard, err
		}
		heard = true
	}
	return heard, nil
}
