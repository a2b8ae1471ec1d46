package fetch

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/shown"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// strangerAside is how long one that did not prove that it may be asked is passed
// over: a certificate may yet come.
const strangerAside = time.Minute

// newBook returns who shows what to this node.
func newBook(f *Fetcher) *shown.Book {
	return shown.New(shown.Config{
		Exchange: func() *exchange.Exchange { return f.cfg.Exchange }, Live: f.cfg.Members.Live, Swarm: f.cfg.Swarm,
		Self: f.cfg.Self, Farm: f.cfg.Identity.Farm, Announce: f.cfg.Announce,
		Start:      func(job func(context.Context)) bool { return f.start(func() { job(f.ctx) }) },
		PassedOver: f.passedOver, Unmet: f.unmet, Lied: f.lied, Now: f.cfg.Now, Log: f.cfg.Log,
	})
}

// peersOf returns who shows what of a root.
func (f *Fetcher) peersOf(rs *rootState) *shown.Peers {
	return f.shown.Peers(shown.Root{ID: rs.id, Scope: rs.head.Scope, Chunks: rs.head.Root.Chunks(), Lineage: rs.lineage, Record: rs.sealed})
}

// unmet has a member passed over that could not be asked who it is, or that is not
// to be asked for anything.
func (f *Fetcher) unmet(id peer.ID, err error) {
	if !errors.Is(err, content.ErrForbidden) {
		f.failed(id)
		return
	}
	f.cfg.Log.Debug("a peer is not asked", "peer", id, "err", err)
	f.habits.mu.Lock()
	defer f.habits.mu.Unlock()
	f.habits.breaker.Aside(plan.Peer(id), f.cfg.Now(), strangerAside)
}

// stalled notes that a member was asked for that long and brought nothing.
func (f *Fetcher) stalled(id peer.ID, quiet time.Duration) {
	f.habits.mu.Lock()
	defer f.habits.mu.Unlock()
	f.habits.breaker.Stall(plan.Peer(id), f.cfg.Now(), quiet)
	f.metrics.failures.Inc()
}

func (f *Fetcher) passedOver(id peer.ID) bool {
	_, aside := f.Aside()[id]
	return aside
}

// holding returns the live members of the farm that show some of a root.
func (f *Fetcher) holding(rs *rootState) []plan.Peer {
	counts := rs.peers.Counts()
	return slices.DeleteFunc(f.live(), func(q plan.Peer) bool { return counts[q] == 0 })
}
