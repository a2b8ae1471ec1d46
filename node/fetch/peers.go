package fetch

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/shown"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// newBook returns who shows what to this node.
func newBook(f *Fetcher) *shown.Book {
	return shown.New(shown.Config{
		Think: f.think, Exchange: func() *exchange.Exchange { return f.cfg.Exchange }, Live: f.cfg.Members.Live, Swarm: f.cfg.Swarm,
		Self: f.cfg.Self, Farm: f.cfg.Identity.Farm, Announce: f.cfg.Announce,
		Start:  func(job func(context.Context)) bool { return f.start(func() { job(f.ctx) }) },
		Wanted: f.announceSoon, Unmet: f.unmet, Lied: f.lied, Now: f.cfg.Now, Log: f.cfg.Log,
	})
}

// peersOf returns who shows what of a root.
func (f *Fetcher) peersOf(rs *rootState) *shown.Peers {
	return f.shown.Peers(shown.Root{ID: rs.id, Scope: rs.head.Scope, Chunks: rs.shape.Chunks, Lineage: rs.lineage, Record: rs.sealed})
}

// unmet has a member passed over that could not be asked who it is, or that is not
// to be asked for anything.
func (f *Fetcher) unmet(id peer.ID, err error) {
	if !errors.Is(err, content.ErrForbidden) {
		f.failed(id)
		return
	}
	f.cfg.Log.Debug("a peer is not asked", "peer", id, "err", err)
	f.think(func(m *plan.Member) { m.Strange(plan.Peer(id), f.cfg.Now()) })
}

// stalled notes that a member was asked for that long and brought nothing.
func (f *Fetcher) stalled(id peer.ID, quiet time.Duration) {
	f.metrics.failures.Inc()
	f.think(func(m *plan.Member) { m.Stall(plan.Peer(id), f.cfg.Now(), quiet) })
}
