package holders

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/volumes/holders/quorum"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// Farm is a node's way to those who hold what its volumes write, for all of them.
type Farm struct {
	Lane Lane // this node's own store too: see Near
	Self trust.PublicKey
	// Live are the members of the farm that are alive, but for this one.
	Live func() []trust.PublicKey
	// Fills has room for FillsMax, and is shared by the writers of a node.
	Fills chan struct{}
	// Now may be nil.
	Now func() time.Time
	Log *slog.Logger
}

func (f *Farm) now() time.Time {
	if f.Now != nil {
		return f.Now()
	}
	return time.Now()
}

// Inherit is Inherit for a volume by its record, on this node: dir is made, and is the
// caller's to remove. It is zero where the record names no holder, and names none itself where
// none can be reached and the policy is one that asks for nothing but the writer's disk.
func (f *Farm) Inherit(ctx context.Context, name string, record catalog.Volume, incarnation uint64, dir string) (Inheritance, error) {
	if len(record.Holders) == 0 || record.State == catalog.Released { // else they may have what another policy had acknowledged
		return Inheritance{}, nil
	}
	k, err := catalog.PolicyHolders(record.Policy)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return Inheritance{}, err
	}
	if k == 0 { // they are its holders until all is in the bucket
		k = len(record.Holders)
	}
	x := &heir{Farm: f, name: name, record: record, through: record.Through(), incarnation: incarnation, k: k, dir: dir}
	in, err := x.inherit(ctx)
	if err != nil {
		err = fmt.Errorf("inherit volume %s: %w", name, err)
	}
	switch {
	case record.Policy == catalog.PolicyLocal && errors.Is(err, content.ErrUnavailable):
		f.Log.Warn("a volume goes on without what its holders may have from the time when its flushes waited for them", "volume", name, "err", err)
		return Inheritance{Epoch: record.Epoch + 1}, os.RemoveAll(dir) // of which none has anything: they are named no more
	case err == nil && !in.DegradedSince.IsZero():
		f.Log.Warn("the node that had a volume has acknowledged flushes alone since then; they are on its disk only, if it wrote anything, and become an orphan snapshot when it is back",
			"volume", name, "since", in.DegradedSince.UTC().Format(time.RFC3339))
	}
	return in, err
}

// Owner is one volume that this node writes.
type Owner struct {
	// Name is what it is called now.
	Name func() string
	// Record is what is known of the record; sure says that its epoch is this node's, as
	// far as anybody could tell before this node last stood still.
	Record func() (body catalog.Volume, sure bool)
	// Revise writes the record over the one known last; ErrFenced means that the epoch is
	// not this node's any more, another error that it may have been written.
	Revise func(ctx context.Context, change func(*catalog.Volume) error) error
	// Outbid writes to the record that its node has an epoch later than the given one, and returns which it has;
	// with an error it may have been written, ErrFenced as for Revise. A writer under that epoch follows this one.
	Outbid func(ctx context.Context, epoch uint64) (uint64, error)
	// Owned reads the record, for sure: ErrFenced as for Revise.
	Owned func(context.Context) error
	// Began, nil is not, keeps where the journal ended when it was opened first since holders had no more: in
	// a later process, too, they tell by that whether the disk was rolled back. Joined, before one gets, or is
	// named for, what comes behind, is the end of that.
	Began  func(end uint64) uint64
	Joined func() error
	// Outdated is told, unless nil, that a holder has what this disk has not; ctx ends with the Guard.
	Outdated func(ctx context.Context)
	// Origin is what flushes wait for under the policy origin; nil is nothing.
	Origin func(ctx context.Context, upTo content.Position) error
}

// Guard has the flushes of a volume wait for whom the policy in its record says: for holders, as
// long as it is that, under the epoch that the record has. Use: Farm.Guard, Begin, Close.
type Guard struct {
	farm  *Farm
	owner Owner

	met     sync.Map   // by trust.PublicKey, who has joined
	mu      sync.Mutex // guards what follows
	journal Journal
	began   uint64  // its end when it was opened, see Owner
	since   uint64  // epoch of the first writer
	floor   uint64  // flushes were asked for up to there, under whatever policy and epoch
	writer  *Writer // nil while no holder is asked for
	stop    func()  // ends it
	closed  bool
}

// Guard returns that of a volume, which does nothing before Begin.
func (f *Farm) Guard(o Owner) *Guard { return &Guard{farm: f, owner: o} }

// Begin has holders follow a volume that was opened just now, if its policy asks for them.
func (g *Guard) Begin(j Journal) {
	end := j.End().Seq
	began := end
	body, _ := g.owner.Record()
	if k, _ := catalog.PolicyHolders(body.Policy); k > 0 && end > 0 && g.owner.Began != nil {
		began = g.owner.Began(end)
	}
	g.mu.Lock()
	g.journal, g.began = j, began
	g.mu.Unlock()
	_, _ = g.follow(end) // a policy that is none fails each flush
}

// now is the writer and the journal that it has, nil for none.
func (g *Guard) now() (*Writer, Journal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.writer, g.journal
}

// Persist is what a volume.Config has. ErrUnavailable means that the holders have not all
// within FlushWait, or that it was not known so long whose the volume is.
func (g *Guard) Persist(ctx context.Context, upTo content.Position) error {
	begun := time.Now()
	var asked *Writer
	var said error // of it; nil counts while the record names those who have all
	w, err := g.follow(upTo.Seq)
	for ; w != nil || errors.Is(err, content.ErrUnavailable); w, err = g.follow(upTo.Seq) {
		switch {
		case w != nil && w != asked:
			asked, said = w, w.Persist(ctx, upTo)
			if said == nil || errors.Is(said, content.ErrClosed) { // another may be to be asked, or the volume is closed
				continue
			}
			return said
		case w != nil && said == nil:
			return nil
		case w != nil:
			err = said
		}
		if wait(ctx, nextAfter); ctx.Err() != nil || time.Since(begun) >= FlushWait {
			return err
		}
	}
	if err != nil {
		return err
	}
	body, _ := g.owner.Record()
	k, err := catalog.PolicyHolders(body.Policy)
	switch {
	case k > 0: // which it did not a moment ago
		return g.Persist(ctx, upTo)
	case g.owner.Origin != nil && body.Policy == catalog.PolicyOrigin:
		return g.toOrigin(ctx, upTo, len(body.Holders) > 0)
	}
	return err
}

// toOrigin has the origin have all up to a place. While the record names holders, from a policy
// that asked for them, that is all there is: once it is there nobody has to reach one of them.
func (g *Guard) toOrigin(ctx context.Context, upTo content.Position, named bool) error {
	_, j := g.now()
	if !named || j == nil {
		return g.owner.Origin(ctx, upTo)
	}
	if err := g.owner.Origin(ctx, j.End()); err != nil {
		return err
	}
	return g.owner.Revise(ctx, func(v *catalog.Volume) error { v.Dismiss(); return nil })
}

// Changed has whom the record names by now asked at once: flushes that wait for others wait for them no more.
func (g *Guard) Changed() {
	if _, j := g.now(); j != nil {
		_, _ = g.follow(j.End().Seq) // a policy that is none fails each flush
	}
}

// Vouched reports whether nobody can have taken the volume over, see Writer.Vouched.
func (g *Guard) Vouched(ctx context.Context) bool {
	w, _ := g.now()
	return w != nil && w.Vouched(ctx)
}

// Advanced has the holders brought what the journal has, if a policy asks for any.
func (g *Guard) Advanced() {
	if w, _ := g.now(); w != nil {
		w.wake()
	}
}

// Status is how the holders stand; false where none are asked for.
func (g *Guard) Status() (Status, bool) {
	w, _ := g.now()
	if w == nil {
		return Status{}, false
	}
	return w.Status(), true
}

// Close ends the following; the volume is not written any more.
func (g *Guard) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.end()
}

// end ends the writer. Called with mu.
func (g *Guard) end() {
	if g.writer != nil {
		g.stop()
		g.writer, g.stop = nil, nil
	}
}

// follow has the writer that policy and epoch ask for, nil for none. Entries up to floor are
// durable here. ErrUnavailable says that it is not known whose the volume is: what it has
// here may be an older copy, of which holders must not hear.
func (g *Guard) follow(floor uint64) (*Writer, error) {
	body, sure := g.owner.Record()
	k, err := catalog.PolicyHolders(body.Policy)
	if err != nil {
		return nil, err
	}
	claim := wire.Claim{Volume: body.ID, Epoch: body.Epoch, Incarnation: body.Incarnation}
	alone := body.Degrade == catalog.PolicyLocal
	g.mu.Lock()
	defer g.mu.Unlock()
	g.floor = max(g.floor, floor)
	if g.writer != nil && (k == 0 || sure && g.writer.cfg.Claim != claim || !g.writer.expects(body)) {
		g.end()
	}
	switch {
	case g.closed || g.journal == nil && k > 0:
		return nil, content.ErrClosed
	case k == 0:
		if g.journal != nil {
			g.journal.Held(math.MaxUint64)
		}
		return nil, nil
	case g.writer == nil && !sure:
		return nil, fmt.Errorf("%w: whether volume %s is this node's still is not known, and nobody is asked to hold it before", content.ErrUnavailable, g.owner.Name())
	case g.writer == nil:
		g.start(body, claim)
	default:
		g.writer.Want(k, alone)
	}
	g.writer.Based(body.Through())
	return g.writer, nil
}

// start starts a writer. Called with mu.
func (g *Guard) start(body catalog.Volume, claim wire.Claim) {
	g.since = cmp.Or(g.since, claim.Epoch)
	k, _ := catalog.PolicyHolders(body.Policy)
	g.writer = NewWriter(WriterConfig{
		Farm: g.farm, Owner: g.owner, Claim: claim, Since: g.since, Began: g.began, Met: &g.met, Name: g.owner.Name(), Ancestors: journal.Ancestors(g.journal.Sealed(), body.ID), K: k, Alone: body.Degrade == catalog.PolicyLocal,
		Said: quorum.Record{Holders: body.Holders, Degraded: !body.DegradedSince.IsZero()}, Through: body.Through(),
	}, g.floor)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w, j, log, name := g.writer, g.journal, g.farm.Log, g.owner.Name()
	go func() {
		err := w.Run(ctx, j)
		close(done)
		switch {
		case errors.Is(err, content.ErrClosed): // another comes in its place
			_, _ = g.follow(0)
		case err != nil:
			log.Error("a volume's holders are not followed any more, and its flushes fail", "volume", name, "err", err)
			if g.owner.Outdated != nil && errors.As(err, new(outdated)) {
				g.owner.Outdated(ctx)
			}
		}
	}()
	g.stop = func() { cancel(); <-done }
}
