package exchange

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/exchange/turns"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// StallTimeout is how long a peer may show no sign of progress on a request:
	// longer than a garbage collection or a lost packet takes, short enough that
	// a guest survives several peers in a row.
	StallTimeout = 2 * time.Second
	// ProgressInterval is how often a server that makes an asker wait says it is alive.
	ProgressInterval = 500 * time.Millisecond
)

// Config is what an Exchange is built from.
type Config struct {
	// Host carries the streams. It is the caller's: Run does not close it.
	Host host.Host
	// Ledger takes the proofs of others, asking or asked; its mesh names the protocol.
	Ledger *identity.Ledger
	// Chain is our own certificate; empty makes us a stranger.
	Chain trust.Chain
	// Server answers requests for content; nil serves nothing.
	Server Server
	// Answerer answers calls; nil answers none.
	Answerer Answerer
	// Holder keeps what others' volumes have written; nil keeps nothing.
	Holder Holder
	// OnViolation is told of a peer that broke the protocol. It must not block.
	OnViolation func(peer.ID, error)
	// OnProved is told of a peer that has proved who it is, in either direction, and
	// OnLost of one whose certificate, and so its streams, has ended. Neither must block.
	OnProved, OnLost func(peer.ID)
	// Allow is asked before so many bytes of content are sent, 0 standing for some: who asks
	// for them while it fails hears that this member is busy. nil allows all.
	Allow func(bytes int) error
	// UploadRate bounds what is sent of content, to all askers together, in bytes a second;
	// 0 is no bound. See SetUploadRate.
	UploadRate int64
	// Log may be nil.
	Log *slog.Logger

	// turns is how many objects are read and sent at once, and as many for guests; 0 is
	// four a core.
	turns int
}

func (c Config) withDefaults() (Config, error) {
	if c.Host == nil || c.Ledger == nil {
		return c, errors.New("exchange: Config needs a Host and a Ledger")
	}
	c.turns = cmp.Or(c.turns, 4*runtime.GOMAXPROCS(0))
	if c.OnViolation == nil {
		c.OnViolation = func(peer.ID, error) {}
	}
	if c.OnProved == nil {
		c.OnProved = func(peer.ID) {}
	}
	if c.OnLost == nil {
		c.OnLost = func(peer.ID) {}
	}
	if c.Allow == nil {
		c.Allow = func(int) error { return nil }
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c, nil
}

// Exchange asks peers for content and answers theirs. Safe for concurrent use.
type Exchange struct {
	cfg      Config
	protocol protocol.ID
	codec    *codec
	metrics  metrics
	chain    atomic.Value // our certificate, encoded: []byte
	ledger   *identity.Ledger
	note     rate.Sometimes // for what strangers could fill a log with

	// As the asked: who asks, whose turn it is, and what strangers are sent.
	askers     askers
	turns      turns.Turns
	traffic    traffic
	uploadRate atomic.Int64
	strangers  *rate.Limiter

	// Work goes on ctx, which ends with Run; entering guards closing, after which no more
	// begins, and nothing is locked under it.
	ctx      context.Context
	cancel   context.CancelFunc
	work     sync.WaitGroup // what Run waits for
	entering sync.Mutex
	closing  bool

	// mu guards what follows; nothing is locked under it but a session's.
	mu       sync.Mutex
	sessions map[peer.ID]*session
}

// New builds an Exchange; nobody is answered before Run.
func New(cfg Config) (*Exchange, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	x := &Exchange{
		cfg: cfg, ledger: cfg.Ledger, protocol: protocol.ID(wire.ProtocolID(cfg.Ledger.Mesh())), metrics: newMetrics(),
		note: rate.Sometimes{First: 10, Interval: time.Second}, strangers: rate.NewLimiter(strangersRate, strangersBurst), turns: turns.Turns{Max: cfg.turns}, traffic: newTraffic(),
		sessions: map[peer.ID]*session{},
	}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	x.askers = askers{stranger: func(id peer.ID) bool { _, ok := x.ledger.Of(id); return !ok }, max: strangersMax, up: link.NewUplink(), peers: map[peer.ID]*asker{}}
	if x.codec, err = newCodec(); err != nil {
		return nil, err
	}
	x.SetUploadRate(cfg.UploadRate)
	return x, x.Present(cfg.Chain)
}

// SetUploadRate changes Config.UploadRate, from the next object on. Below it priorities
// hold as ever: a guest that is blocked waits for one object at most.
func (x *Exchange) SetUploadRate(bytes int64) {
	x.uploadRate.Store(bytes)
	x.turns.Limit(bytes)
}

// Spend takes of the rate what goes over the same line and is not sent here.
func (x *Exchange) Spend(bytes int) { x.turns.Spend(bytes) }

// Present has the streams that open from now on show that certificate as our own.
func (x *Exchange) Present(chain trust.Chain) (err error) {
	var encoded []byte
	if len(chain) > 0 {
		encoded, err = content.NewCodec().Marshal(chain)
	}
	if err == nil && len(encoded) > wire.ChainSizeMax {
		err = fmt.Errorf("%w: %d bytes, the limit is %d", content.ErrInvalid, len(encoded), wire.ChainSizeMax)
	}
	if err != nil {
		return fmt.Errorf("exchange: certificate: %w", err)
	}
	x.chain.Store(encoded)
	return nil
}

func (x *Exchange) shown() []byte { return x.chain.Load().([]byte) }

const (
	// watchInterval is how often requests are looked over for stalled ones.
	watchInterval = StallTimeout / 8
	// sweepInterval is how often askers are looked over for those that want nothing.
	sweepInterval = time.Second
)

// Run serves until ctx ends, then closes all streams, also those that were opened before
// it to ask others, and returns nil. It is called once.
func (x *Exchange) Run(ctx context.Context) error {
	defer x.work.Wait()
	defer x.close()
	defer x.cancel()
	x.cfg.Host.SetStreamHandler(x.protocol, func(s network.Stream) {
		if !x.enter() {
			_ = s.Reset()
			return
		}
		defer x.work.Done()
		x.accept(x.ctx, s)
	})
	defer x.cfg.Host.RemoveStreamHandler(x.protocol)
	tick := time.Tick(watchInterval)
	sweep := time.Tick(sweepInterval)
	check := time.Tick(identity.CheckInterval)
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick:
			for _, o := range x.streams() {
				o.watch(now)
			}
		case now := <-sweep:
			x.askers.sweep(now)
		case <-check:
			x.work.Go(x.Recheck)
		}
	}
}

// enter counts work that Run must wait for, unless it no longer does.
func (x *Exchange) enter() bool {
	x.entering.Lock()
	defer x.entering.Unlock()
	if !x.closing {
		x.work.Add(1)
	}
	return !x.closing
}

// close ends all sessions.
func (x *Exchange) close() {
	x.entering.Lock()
	x.closing = true
	x.entering.Unlock()
	for _, o := range x.streams() {
		o.fail(content.ErrClosed)
	}
}

// start runs a job that Run waits for; content.ErrClosed when it no longer would.
func (x *Exchange) start(job func(context.Context)) error {
	if !x.enter() {
		return content.ErrClosed
	}
	go func() {
		defer x.work.Done()
		job(x.ctx)
	}()
	return nil
}

// streams returns those of this moment on which we ask.
func (x *Exchange) streams() (all []*outbound) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range x.sessions {
		all = append(all, s.streams()...)
	}
	return all
}

func (x *Exchange) session(id peer.ID) *session {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.sessions[id]
	if s == nil {
		if len(x.sessions) >= sessionsMax {
			maps.DeleteFunc(x.sessions, func(_ peer.ID, s *session) bool { return s.retire() })
		}
		s = newSession(x, id)
		x.sessions[id] = s
	}
	return s
}

// Collectors returns the metrics.
func (x *Exchange) Collectors() []prometheus.Collector { return []prometheus.Collector{x.metrics.all} }

// Meet returns who a peer is, as the certificate that it has shown says: if it has not
// proved itself yet, the control stream is opened, and its hello waited for. A peer without a good certificate is
// content.ErrForbidden, one that can't be reached or is silent content.ErrUnavailable.
func (x *Exchange) Meet(ctx context.Context, id peer.ID) (trust.Identity, error) {
	if who, ok := x.ledger.Of(id); ok {
		return who, nil
	}
	o, err := x.session(id).lane(ctx, wire.LaneControl)
	if err == nil {
		err = o.proved(ctx)
	}
	who, ok := x.ledger.Of(id)
	switch {
	case err != nil:
		return trust.Identity{}, fmt.Errorf("meet %s: %w", id, err)
	case !ok: // it has lost it again
		return trust.Identity{}, fmt.Errorf("meet %s: %w: its certificate is not good any more", id, content.ErrForbidden)
	}
	return who, nil
}

// proved waits until the asked has proved who it is.
func (o *outbound) proved(ctx context.Context) error {
	if _, ok := o.session.x.ledger.Of(o.session.peer); ok {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, StallTimeout, fmt.Errorf("hello: %w", ErrStalled))
	defer cancel()
	select {
	case <-o.greeted:
		return o.refused
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (x *Exchange) present(id peer.ID, chain []byte) error {
	fresh, err := x.ledger.Present(id, chain)
	if err != nil && len(chain) > 0 {
		x.note.Do(func() { x.cfg.Log.Warn("peer is treated as a stranger", "peer", id, "err", err) })
	}
	if fresh {
		x.cfg.OnProved(id)
	}
	return err
}

// Recheck verifies the certificates of all peers again: Run calls it once in a while,
// and whoever told the verifier of a revocation at once. The streams of peers whose
// certificate is good no more are ended, in both directions, and Config.OnLost is told.
func (x *Exchange) Recheck() {
	connected := func(id peer.ID) bool { return x.cfg.Host.Network().Connectedness(id) != network.NotConnected }
	for _, id := range x.ledger.Recheck(connected) {
		x.cfg.Log.Warn("a peer's certificate is not good any more; its streams are ended", "peer", id)
		if a := x.askers.find(id); a != nil {
			a.drop()
		}
		for _, o := range x.streams() {
			if o.session.peer == id {
				o.fail(fmt.Errorf("%w: the peer's certificate is not good any more", ErrDisconnected))
			}
		}
		x.cfg.OnLost(id)
	}
}

// begin sends a request on a lane, to a peer that has proved who it is and to no other.
func (s *session) begin(ctx context.Context, l wire.Lane, p *pending, m wire.Message) (*outbound, uint32, error) {
	for {
		o, err := s.lane(ctx, l)
		if err == nil {
			err = o.proved(ctx)
		}
		if errors.Is(err, content.ErrForbidden) { // nobody has forbidden us anything
			err = fmt.Errorf("%w: the peer has not proved who it is: %v", content.ErrUnavailable, err)
		}
		if err != nil {
			return nil, 0, err
		}
		id, err := o.begin(p, m)
		if !errors.Is(err, errQuiet) {
			return o, id, err
		}
	}
}

type metrics struct {
	all            *prometheus.Registry
	sent, received *prometheus.CounterVec
	violations     prometheus.Counter
}

func newMetrics() metrics {
	all := prometheus.NewRegistry()
	to := promauto.With(all)
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "grange", Subsystem: "exchange", Name: name, Help: help}
	}
	return metrics{
		all:        all,
		sent:       to.NewCounterVec(opts("sent_bytes_total", "Bytes of data frames sent to peers, by priority."), []string{"priority"}),
		received:   to.NewCounterVec(opts("received_bytes_total", "Bytes of data frames received from peers, by priority."), []string{"priority"}),
		violations: to.NewCounter(opts("violations_total", "Streams closed because the peer broke the protocol.")),
	}
}
