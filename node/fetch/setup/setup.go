// Package setup has what a Fetcher is built from, and what it is told of a root.
package setup

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/spans"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// Members tells who is here. It is the farm.
type Members interface {
	// Live returns the live members of the farm, this node included; what it has returned
	// never changes.
	Live() []peer.ID
}

// Announcements is the swarm's DHT.
type Announcements interface {
	Announce(swarm.Key) error
	Withdraw(swarm.Key)
	Find(context.Context, swarm.Key) iter.Seq[peer.AddrInfo]
	// Peers returns the members that are in reach.
	Peers() []peer.AddrInfo
	Ban(peer.ID, time.Duration, string)
}

// Origin reads packs.
type Origin = pack.Source

// Root is what a record says of content: checked by its reader.
type Root struct {
	Head pack.Head
	// Lineage are the roots before it, the nearest first; who holds one of them may
	// hold chunks.
	Lineage []content.CID
	// Envelope is the sealed record, for members that have not met the root.
	Envelope []byte
	// As are the names that it is read by, for Config.NoOrigin.
	As []content.Ref
}

// IOTimeoutDefault is how long a guest's read waits for its bytes: longer than a store
// is away that is restarted, shorter than the patience of who looks at a machine that
// stands still.
const IOTimeoutDefault = 5 * time.Minute

// Config is what a Fetcher is built from.
type Config struct {
	Cache *cache.Cache
	// Exchange is how others are asked; it may be set later, with Connect. nil asks
	// nobody.
	Exchange *exchange.Exchange
	Members  Members
	// Swarm finds members of other farms; nil finds none.
	Swarm Announcements
	// Origin returns the reader of the origin, or nil
	// while there is none or it does not answer. It is asked often.
	Origin func() Origin
	Self   peer.ID
	// Identity is this node's own; its farm decides what is near.
	Identity trust.Identity
	Verifier *trust.Verifier
	// Announce returns the secret that roots of a scope are announced under, then others
	// that members may still use.
	Announce func(content.Scope) [][32]byte
	// Introduce checks the envelope of a record and returns its root, for members
	// that ask for one that this node has not met. nil takes none.
	Introduce func(envelope []byte) (Root, error)
	// Serves reports whether anybody is sent anything, and Served is told what of a root was
	// sent to whom, in bytes; nil is always, and is not told. HoldsOnly has the Fetcher bring
	// in nothing for others, as a seed doesn't, which holds what it follows and no more.
	Serves    func() bool
	Served    func(to peer.ID, root content.CID, bytes int64)
	HoldsOnly bool
	// IOTimeout is how long a guest's read waits for a source to come back; 0 is
	// IOTimeoutDefault.
	IOTimeout time.Duration
	// NoOrigin reports whether nobody is to read the origin for what is read by a name; nil
	// is for none. Members that are asked to bring it in are told so. What others ask of
	// this node is theirs.
	NoOrigin func(content.Ref) bool
	// Spans are told what reads wait for, and what is brought in for members that trace; nil is not.
	Spans *spans.Spans
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

// WithDefaults fails for a Config that lacks a part.
func (cfg Config) WithDefaults() (Config, error) {
	if cfg.Cache == nil || cfg.Verifier == nil || cfg.Members == nil {
		return cfg, errors.New("fetch: Config needs a Cache, a Verifier and Members")
	}
	cfg.IOTimeout = cmp.Or(cfg.IOTimeout, IOTimeoutDefault)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Announce == nil {
		cfg.Announce = func(content.Scope) [][32]byte { return make([][32]byte, 1) }
	}
	if cfg.NoOrigin == nil {
		cfg.NoOrigin = func(content.Ref) bool { return false }
	}
	if cfg.Origin == nil {
		cfg.Origin = func() Origin { return nil }
	}
	if cfg.Serves == nil {
		cfg.Serves = func() bool { return true }
	}
	if cfg.Served == nil {
		cfg.Served = func(peer.ID, content.CID, int64) {}
	}
	return cfg, nil
}
