package holders

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/volumes/holders/quorum"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// FlushWait is how long a flush waits for holders, while none that is being filled gets
	// any further, before it fails: longer than a holder takes to be replaced. FillWait
	// is how long it waits at most: file systems bear that, and none bears an error.
	FlushWait = 30 * time.Second
	FillWait  = 10 * time.Minute
	// FillsMax is how many new holders a node fills at once, for all of its volumes: so
	// that guests keep the links when one member held for many.
	FillsMax = 8

	// tickInterval is how often a writer looks at the time and at who is alive.
	tickInterval = time.Second
	// fillAfter and fillJitter say when a holder that is lost is replaced: later than one that was cut off for
	// a moment is asked again, and not at once for all its volumes. For so long a guest waits that flushes.
	fillAfter  = 1500 * time.Millisecond
	fillJitter = 2500 * time.Millisecond
	// ownedAfter is how often a degraded volume's record is read: nobody else would say that it was taken over.
	ownedAfter = 3 * time.Second
	// nextAfter is how often a flush looks for whom to ask, where there is nobody yet.
	nextAfter = 50 * time.Millisecond
	// vouchWithin is how long holders may take to say whether another has come to them, while
	// a guest waits and the record is to be read if they don't.
	vouchWithin = 2 * time.Second
	// recordAfter is how long a writer waits before it writes a record again.
	recordAfter = time.Second
	// goneAfter is for how long who is taking a volume over says nothing to a holder before
	// it is taken to be gone, and who has the volume by the record goes on: more than a round
	// at the origin takes, much less than FlushWait.
	goneAfter = 5 * time.Second
)

// Lane carries requests to holders: *exchange.Exchange.
type Lane interface {
	Ask(ctx context.Context, to peer.ID, m wire.Message) (finish func() (*wire.Held, []byte, error), err error)
}

// Journal is what a volume has written, durable on this node: *volume.Volume.
type Journal interface {
	ReadSegments(w io.Writer, after content.Position, most int64) (content.Position, int64, error)
	End() content.Position
	Sealed() []journal.AdoptedSegment
	Held(seq uint64)
}

// WriterConfig is what a Writer is built from.
type WriterConfig struct {
	*Farm
	Owner
	// Claim is the volume, its epoch and the incarnation, as the record has them. This
	// process has written the volume from the epoch Since on, when its journal ended with
	// the entry Began: no holder has more of what is older, before it is one of Met.
	Claim wire.Claim
	Since uint64
	Began uint64
	Met   *sync.Map // of this process, by trust.PublicKey
	// Name is what it was called when the writer began.
	Name string
	// Ancestors are other volumes with whose segments the journal may begin.
	Ancestors []content.VolumeID
	// Policy says how many holders there are, and Alone whether flushes go on without.
	K     int
	Alone bool
	// Said is what the record says of holders, and Through up to where the bucket has all.
	Said    quorum.Record
	Through content.Position
}

// Writer has others hold what a volume writes. Use: NewWriter, Run. A flush waits until all holders that the record names have it.
type Writer struct {
	cfg WriterConfig

	mu      sync.Mutex // guards what follows
	state   *quorum.State
	feeders map[trust.PublicKey]*feeder
	changed chan struct{} // closed when something is acknowledged, or the writer stops
	halted  chan struct{} // closed when it stops
	stopped error
	through content.Position
	begin   func(job func(context.Context)) // nil while Run does not run
	journal Journal
	target  uint64 // seq that a flush waits for, or did
	live    []trust.PublicKey
	rank    []trust.PublicKey // of those
}

// NewWriter returns the writer of a volume of which entries up to floor are durable here,
// and so may have been acknowledged.
func NewWriter(cfg WriterConfig, floor uint64) *Writer {
	return &Writer{
		cfg: cfg, state: quorum.New(cfg.K, cfg.Alone, cfg.Said, floor), feeders: map[trust.PublicKey]*feeder{},
		changed: make(chan struct{}), halted: make(chan struct{}), through: cfg.Through,
	}
}

// Run follows the holders until ctx ends, or the volume was taken over: then it fails with ErrFenced, as all
// flushes do from then on; with ErrClosed where it is this node's under a later epoch.
func (w *Writer) Run(ctx context.Context, j Journal) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel(nil)
	w.mu.Lock()
	w.journal = j
	w.begin = func(job func(context.Context)) {
		if ctx.Err() == nil {
			work.Go(func() { job(ctx) })
		}
	}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.begin = nil
		j.Held(math.MaxUint64)
	}()
	tick := time.Tick(tickInterval)
	work.Go(func() { w.own(ctx) })
	for {
		now, _ := w.cfg.Record()
		w.Based(now.Through()) // a fold tells nobody
		w.step(quorum.Tick{Now: w.cfg.now(), Live: w.ranked()})
		w.mu.Lock()
		flushed := w.target
		w.mu.Unlock()
		w.step(quorum.Flushing{Seq: flushed}) // one may have begun before
		select {
		case <-tick:
		case <-w.halted:
			return w.stopped // for good
		case <-ctx.Done():
			w.stop(content.ErrClosed)
			return nil
		}
	}
}

// own looks whose a degraded volume is, again and again.
func (w *Writer) own(ctx context.Context) {
	for ; ctx.Err() == nil; wait(ctx, ownedAfter) {
		if !w.Status().Degraded {
			continue
		}
		switch err := w.cfg.Owned(ctx); {
		case err == nil:
			w.step(quorum.Confirmed{})
		case errors.Is(err, content.ErrFenced):
			w.stop(err)
		}
	}
}

// ranked are the members in the order in which they are asked to hold this volume: each
// volume has another, so that what one member held is spread when it goes.
func (w *Writer) ranked() []trust.PublicKey {
	live := w.cfg.Live()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(live, w.live) {
		w.live, w.rank = live, rank(w.cfg.Claim.Volume, live)
	}
	return w.rank
}

func rank(id content.VolumeID, live []trust.PublicKey) []trust.PublicKey {
	byPeer := map[plan.Peer]trust.PublicKey{}
	var peers []plan.Peer
	for _, k := range live {
		p := plan.Peer(identity.PeerID(k))
		byPeer[p] = k
		peers = append(peers, p)
	}
	out := make([]trust.PublicKey, 0, len(peers))
	for _, p := range plan.Rank(id.String(), peers) {
		out = append(out, byPeer[p])
	}
	return out
}

// step tells the state what has happened, and begins what it says.
func (w *Writer) step(e quorum.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begin == nil || w.stopped != nil {
		return
	}
	before := w.state.Acknowledged()
	for _, a := range w.state.Step(e) {
		switch a := a.(type) {
		case quorum.Follow:
			f := &feeder{w: w, member: a.Member, to: identity.PeerID(a.Member), begin: a.Begin, late: len(w.state.Holders()) >= w.cfg.K && !slices.Contains(w.state.Holders(), a.Member), more: make(chan struct{}, 1)}
			w.feeders[a.Member] = f
			w.begin(f.run)
		case quorum.Leave:
			if f := w.feeders[a.Member]; f != nil {
				delete(w.feeders, a.Member)
				w.begin(f.leave)
			}
		case quorum.Commit:
			w.begin(func(ctx context.Context) { w.commit(ctx, a.Record) })
		}
	}
	w.journal.Held(w.state.Lowest())
	if w.state.Acknowledged() > before {
		w.tell()
	}
}

// tell wakes who waits. Called with mu.
func (w *Writer) tell() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// stop ends the writer for good.
func (w *Writer) stop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped == nil {
		w.stopped = err
		close(w.halted)
		w.tell()
	}
}

// Want changes how many holders there are, and whether flushes go on without.
func (w *Writer) Want(k int, alone bool) {
	w.mu.Lock()
	same := w.cfg.K == k && w.cfg.Alone == alone
	w.cfg.K, w.cfg.Alone = k, alone
	w.mu.Unlock()
	if !same {
		w.step(quorum.Wanted{K: k, Lone: alone})
	}
}

// commit writes who the holders are.
func (w *Writer) commit(ctx context.Context, r quorum.Record) {
	now := w.cfg.now()
	err := w.cfg.Revise(ctx, func(v *catalog.Volume) error {
		v.Holders = slices.Clone(r.Holders)
		switch {
		case !r.Degraded:
			v.DegradedSince = time.Time{}
		case v.DegradedSince.IsZero():
			v.DegradedSince = now
		}
		return w.cfg.Joined()
	})
	switch {
	case err == nil:
		w.cfg.Log.Info("a volume has other holders", "volume", w.cfg.Name, "holders", len(r.Holders), "degraded", r.Degraded)
		w.step(quorum.Recorded{Record: r})
	case errors.Is(err, content.ErrFenced):
		w.stop(err)
	default:
		w.cfg.Log.Warn("the holders of a volume can't be written to its record", "volume", w.cfg.Name, "err", err)
		wait(ctx, recordAfter)
		w.step(quorum.Doubted{})
	}
}

// wait waits for d, or less if ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Persist is what a volume.Config has. ErrUnavailable means that too few holders could be reached or filled,
// see FlushWait, ErrFenced that the volume was taken over, ErrClosed that this is not whom to ask any more.
func (w *Writer) Persist(ctx context.Context, upTo content.Position) error {
	ctx, cancel := context.WithTimeoutCause(ctx, FillWait, context.DeadlineExceeded)
	defer cancel()
	patience := time.NewTimer(FlushWait)
	defer patience.Stop()
	w.mu.Lock()
	w.target = max(w.target, upTo.Seq)
	w.mu.Unlock()
	w.step(quorum.Flushing{Seq: upTo.Seq})
	w.wake()
	for {
		w.mu.Lock()
		done, stopped, changed, holders := w.state.Acknowledged() >= upTo.Seq, w.stopped, w.changed, len(w.state.Holders())
		stuck := w.begin == nil || w.state.Stuck(FlushWait)
		w.mu.Unlock()
		switch {
		case stopped != nil:
			return stopped
		case done:
			return nil
		}
		select {
		case <-changed:
			continue
		case <-patience.C:
			patience.Reset(tickInterval)
		case <-ctx.Done():
			stuck = true
		}
		if stuck {
			return fmt.Errorf("%w: the %d holders of volume %s have not all of it, and %d are asked for; is enough of the farm running?",
				content.ErrUnavailable, holders, w.cfg.Name, w.cfg.K)
		}
	}
}

// wake has the feeders look for more.
func (w *Writer) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.feeders {
		f.wake()
	}
}

// Vouched reports whether all who may be holders, by any record that may be there, have said since
// the call that they are promised to this claim. Who takes the volume over must have had the
// promise of one of them, before the record said so; and one that has lost its disk, or was let go
// by another, has no promise to tell of. So it is what a flush is sure of that they all have taken.
func (w *Writer) Vouched(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, vouchWithin)
	defer cancel()
	w.mu.Lock()
	all, stopped := w.state.Named(), w.stopped != nil
	w.mu.Unlock()
	var asks errgroup.Group
	for _, m := range all {
		asks.Go(func() error {
			held, _, err := asked{w.cfg.Lane, identity.PeerID(m)}.ask(ctx, wire.Status{Claim: w.cfg.Claim})
			if err == nil && (held == nil || held.Claim != w.cfg.Claim) {
				err = content.ErrFenced
			}
			return err
		})
	}
	return asks.Wait() == nil && len(all) > 0 && !stopped
}

// expects reports whether a record may say by now what one does. Else its holders were dismissed,
// under a policy that asks for none, and what they have since counts for nobody.
func (w *Writer) expects(v catalog.Volume) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.MayBe(quorum.Record{Holders: v.Holders, Degraded: !v.DegradedSince.IsZero()})
}

// Based says that the record has all up to a position: holders need not.
func (w *Writer) Based(p content.Position) {
	w.mu.Lock()
	old := p.Seq <= w.through.Seq
	if !old {
		w.through = p
	}
	w.mu.Unlock()
	if !old {
		w.step(quorum.Based{})
		w.wake()
	}
}

// Status is how the holders of a volume stand.
type Status struct {
	// Holders are those that the record names.
	Holders []trust.PublicKey
	// Degraded says that the record says so, and Short that a flush failed for want of
	// holders, or is about to; Few that there are fewer members than are to be holders.
	// Needs is a flush that waits for holders who begin once the bucket has more.
	Degraded, Short, Few, Needs bool
}

// Status returns how the holders stand.
func (w *Writer) Status() Status {
	live := len(w.cfg.Live())
	w.mu.Lock()
	defer w.mu.Unlock()
	named := w.state.Holders()
	return Status{slices.Clone(named), w.state.Degraded(), w.state.Short(FlushWait), len(named) < w.cfg.K && live < w.cfg.K, w.state.Needs()}
}

// jitter is how long after its loss a holder is replaced.
func jitter() time.Duration { return fillAfter + rand.N(fillJitter) }
