package exchange

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// StallTimeout is how long a peer may show no sign of progress on a request:
	// longer than a garbage collection or a lost packet takes, short enough that
	// a guest survives several peers in a row.
	StallTimeout = 2 * time.Second
	// ProgressInterval is how often a server that makes an asker wait says that it
	// is alive, four times within StallTimeout.
	ProgressInterval = 500 * time.Millisecond
)

// Config is what an Exchange is built from.
type Config struct {
	// Host carries the streams. It is the caller's: Run does not close it.
	Host host.Host
	// Verifier checks the certificates of others; its mesh names the protocol.
	Verifier *trust.Verifier
	// Chain is our own certificate; empty makes us a stranger. See Present.
	Chain trust.Chain
	// Server answers requests for content; nil serves nothing.
	Server Server
	// Answerer answers calls; nil answers none.
	Answerer Answerer
	// Turns is how many objects may be read and sent at once; zero means four a
	// core. Guests have as many again to themselves.
	Turns int
	// OnViolation is told of a peer that broke the protocol. It must not block.
	OnViolation func(peer.ID, error)
	// Now is the clock that certificates are checked by; nil means time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Host == nil || c.Verifier == nil:
		return c, errors.New("exchange: Config needs a Host and a Verifier")
	case c.Turns < 0:
		return c, fmt.Errorf("exchange: Turns is %d; want 0 or more", c.Turns)
	}
	if c.Turns == 0 {
		c.Turns = 4 * runtime.GOMAXPROCS(0)
	}
	if c.OnViolation == nil {
		c.OnViolation = func(peer.ID, error) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Exchange asks peers for content and answers theirs. Safe for concurrent use.
type Exchange struct{ cfg Config }

// New builds an Exchange; nothing happens before Run.
func New(cfg Config) (*Exchange, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Exchange{cfg: cfg}, nil
}

// Run serves until ctx ends, then closes all streams and returns nil.
func (x *Exchange) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Collectors returns the metrics.
func (x *Exchange) Collectors() []prometheus.Collector { return nil }

// Present replaces our certificate, after a join. Streams that presented the old
// one are closed; their requests fail with ErrDisconnected.
func (x *Exchange) Present(chain trust.Chain) {}

// Want asks a peer and calls each with its replies, one at a time, from another
// goroutine; each is not called again after Want returned. It returns nil when
// every index was answered, or when Refer or Unknown ended the request; an error
// otherwise, after which some indexes may have been answered. A slow callback
// holds up the replies behind it, those of guests apart.
func (x *Exchange) Want(ctx context.Context, from peer.ID, req Request, each func(Reply)) error {
	return content.ErrClosed
}

// Introduce sends the envelope of a record to a peer that answered Unknown.
func (x *Exchange) Introduce(ctx context.Context, to peer.ID, envelope []byte) error {
	return content.ErrClosed
}

// Bitmaps yields the set of chunks of root that the peer holds, then additions to
// it, merged while the consumer is busy. It ends with an error when the peer is
// gone (or has no such root: ErrNotFound), silently when ctx ends.
func (x *Exchange) Bitmaps(ctx context.Context, from peer.ID, root content.CID) iter.Seq2[*content.Bitmap, error] {
	return func(yield func(*content.Bitmap, error) bool) { yield(nil, content.ErrClosed) }
}

// Call asks a peer's Answerer. Errors of the remote wrap the sentinel of package
// content that they wrapped there.
func (x *Exchange) Call(ctx context.Context, to peer.ID, method string, body []byte) ([]byte, error) {
	return nil, content.ErrClosed
}

// Link is what was measured of the way to a peer.
type Link struct {
	// Rate is what the link carries, in bytes a second; zero when it was never
	// filled and so never measured.
	Rate float64
	// RTT is the shortest round trip of the last seconds, queueing included only
	// if it never emptied; zero when unknown.
	RTT time.Duration
	// InFlight bounds the bulk that we send to the peer at once, in bytes.
	InFlight int
}

// Link reports on the way from here to a peer that asked us for bytes.
func (x *Exchange) Link(to peer.ID) (Link, bool) { return Link{}, false }
