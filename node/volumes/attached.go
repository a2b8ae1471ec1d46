package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/boots/merge"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/doors"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/gate"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// recordTimeout bounds what one event may take at the origin; of a start, for which guests wait, startTimeout does.
	recordTimeout = 30 * time.Second
	startTimeout  = 3 * time.Second
)

// attached is a volume that this node serves, that failed to be served, or that is on its way. Its record, once it has one
// by registered, is changed by revise and by follow alone, one at a time; nobody waits for another volume's.
type attached struct {
	v       *Volumes
	opening chan struct{} // closed when another stands for the volume
	looking atomic.Bool   // since the process stood still
	leaving atomic.Bool   // it is being given up
	over    atomic.Bool   // it was closed: who has it since says what is on disk
	turn    *gate.Turn    // at the record

	gate *gate.Gate
	spec terms.Spec // of the attach, until that has it

	vol   *volume.Volume // nil unless it is served
	guard *holders.Guard // of its flushes
	front *limit.Device  // vol within its limits, as the doors serve it
	image *fetch.Image
	disk  *ublk.Disk     // nil over NBD
	folds *fold.Paced    // nil where nothing is written, or no origin known
	line  *fold.Tails    // of its flushes, under the policy origin
	users doors.Entrance // NBD connections

	placing sync.Mutex // held from where the journal is sealed for a snapshot or a fork until that is noted, and has its record

	blind *index.Blind // of this process
	err   error
	after time.Duration // that it failed it is tried again,
	again time.Time     // which is then

	mu     sync.Mutex // guards what follows
	name   string
	right  right.State
	base   *catalog.Record // that body was read from or written to; nil: to be read
	body   catalog.Volume
	gaps   uint64               // of the pulse, before base was asked for
	asked  time.Time            // which was then, of what the right goes by
	taken  string               // by whom, once it is lost
	behind string               // what stays with who had it before
	fresh  *index.Entry         // of a folder that is being made
	made   string               // by which version of the record
	heir   *holders.Inheritance // what was taken from holders for that
}

func (v *Volumes) newAttached(e index.Entry, spec terms.Spec) *attached {
	a := &attached{v: v, turn: gate.NewTurn(), gate: gate.New(v.pulse), spec: spec, name: e.Name, body: e.Volume, right: e.Right(v.cfg.Self, v.incarnation)}
	a.line = &fold.Tails{
		Bucket: v.bucket().Bucket,
		Dir:    func() string { _, body, _ := a.record(); return v.index.Path(index.Entry{Volume: body}) },
		Ends:   func() []content.Position { e, _ := v.index.Get(a.Name()); return e.Places() },
		Owned:  a.owned,
		Outbid: func(ctx context.Context, epoch uint64) error { _, err := a.outbid(ctx, epoch); return err },
	}
	if !e.Committed { // nobody else can have it, whenever this process stood still
		a.right.Stage, a.gaps = right.Uncommitted, v.pulse.Gaps()
	}
	return a
}

// Name is what the volume is called now.
func (a *attached) Name() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.name
}

// record is what is known of the volume's record.
func (a *attached) record() (base *catalog.Record, body catalog.Volume, st right.State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.base, a.body, a.right
}

// own is the record as this node wrote it last: another's says nothing of the journal here.
func (a *attached) own() catalog.Volume {
	_, body, st := a.record()
	if e, _ := a.v.index.Get(a.Name()); !st.IsMine(body) {
		return e.Volume
	}
	return body
}

// said is when the record was asked for that says that the volume is this node's, zero while that is not known.
func (a *attached) said() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.right.Stage != right.Serving {
		return time.Time{}
	}
	return a.asked
}

func (a *attached) set(base *catalog.Record, body catalog.Volume) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.base, a.body = base, body
}

// revise changes the volume's record, which must be this node's: over the one that is known, and again over the one that is there
// where that is another of this node. ErrFenced means that it is another's by now, and the volume stops; ErrUnavailable and
// bucket.ErrUnknown that the change may be there or not, and the next revise finds out. change is called with what the record says,
// maybe more than once, also with what an earlier call has made of it. It must not keep what it is given.
func (a *attached) revise(ctx context.Context, change func(*catalog.Volume) error) error {
	ctx, end, err := a.turn.Have(ctx)
	if err != nil {
		return err
	}
	defer end()
	for range records.Tries {
		base, body, st := a.record()
		if base == nil || st.Stage != right.Serving {
			if err := a.follow(ctx, right.Due{}); err != nil {
				return err
			}
			base, body, st = a.record()
		}
		switch {
		case st.Stage == right.Lost:
			return a.fenced()
		case base == nil || st.Stage != right.Serving:
			return fmt.Errorf("%w: its record can't be read or written now", content.ErrUnavailable)
		}
		body.Segments, body.Holders, body.Lineage = slices.Clone(body.Segments), slices.Clone(body.Holders), slices.Clone(body.Lineage)
		hot := body.Hot
		if err := change(&body); err != nil {
			return err
		}
		body.Hot = merge.Hot(a.v.codec, body.Folded, hot, a.image.Touched(body.State == catalog.Released))
		r, err := a.v.records().PutVolume(ctx, a.Name(), base, body)
		if err == nil {
			return a.keep(&r, body)
		}
		a.set(nil, a.body)
		if !records.IsOvertaken(err) {
			return err
		}
	}
	return records.Busy()
}

// keep takes a record as this node's own.
func (a *attached) keep(base *catalog.Record, body catalog.Volume) error {
	a.set(base, body)
	_, err := a.v.index.Change(a.Name(), func(e *index.Entry) { e.Volume, e.Empty = body, body.State == catalog.Released })
	return err
}

// fenced says that the volume is another's.
func (a *attached) fenced() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Errorf("%w: %s", content.ErrFenced, cmp.Or(a.taken, "another node has it"))
}

// happen has an event change the state, and does what follows.
func (a *attached) happen(ctx context.Context, e right.Event) error {
	ctx, end, err := a.turn.Have(ctx)
	if err != nil {
		return err
	}
	defer end()
	if _, ok := e.(right.StoodStill); ok {
		a.mu.Lock()
		a.gaps = a.v.pulse.Gaps()
		a.mu.Unlock()
	}
	return a.follow(ctx, e)
}

// follow is happen in the caller's turn.
func (a *attached) follow(ctx context.Context, e right.Event) error {
	for range records.Tries {
		a.mu.Lock()
		next, deeds := right.Step(a.right, e)
		a.right = next
		a.mu.Unlock()
		e = nil
		for _, d := range deeds {
			var err error
			if e, err = a.do(ctx, d); err != nil {
				return err
			}
			if e != nil {
				break
			}
		}
		if e == nil {
			return nil
		}
	}
	return records.Busy()
}

// do does one deed, and returns the event that follows, if one does.
func (a *attached) do(ctx context.Context, d right.Deed) (right.Event, error) {
	base, body, st := a.record()
	switch d {
	case right.Read:
		return a.read(ctx)
	case right.Vouch:
		return a.vouched(ctx), nil
	case right.Keep:
		err := a.keepRight()
		if _, _, st := a.record(); errors.Is(err, content.ErrNoSpace) && st.Stage != right.Serving {
			return right.Unkept{}, nil
		}
		return nil, err
	case right.Adopt:
		return nil, a.adopt(ctx)
	case right.Commit:
		return a.takeNext(ctx)
	case right.Tell:
		a.leave(ctx)
	case right.Serve:
		a.admit()
		return nil, a.serve(ctx)
	case right.Shut:
		a.gate.Shut()
	case right.Open:
		a.admit()
	case right.Stop:
		return nil, a.stop(ctx)
	case right.Refuse:
		return nil, a.v.names().Held(ctx, *base, body)
	case right.RefuseStale:
		return nil, terms.Stale(body.Generation, st.Wish.Generation)
	case right.RefuseAway:
		return nil, fmt.Errorf("%w: whether another node has it by now can't be told while the origin is away", content.ErrUnavailable)
	case right.RefuseGone:
		return nil, fmt.Errorf("%w: its name was freed", content.ErrNotFound)
	case right.RefuseFull:
		return nil, fmt.Errorf("%w: the disk of the data folder has no room to note that the volume is this node's", content.ErrNoSpace)
	}
	return nil, nil
}

// read looks at the record. That a volume is not this node's any more is believed of the
// origin, and of enough members: one alone may make it up.
func (a *attached) read(ctx context.Context) (right.Event, error) {
	name, gaps, asked := a.Name(), a.v.pulse.Gaps(), a.v.cfg.Now()
	if a.v.skipsOrigin() {
		return right.Unreadable{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.v.patience())
	defer cancel()
	r, body, err := a.v.records().Volume(ctx, name)
	_, _, st := a.record()
	if (err == nil && !st.IsMine(body) || r.Tombstone) && st.Here {
		r, body, err = a.v.records().SureVolume(ctx, name)
	}
	e, _ := a.v.index.Get(name)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case errors.Is(err, content.ErrNotFound) && records.Freed(r, e.Created):
		a.gaps, a.taken = gaps, "its name was freed on "+r.SignedAt.UTC().Format(time.RFC3339)
		return right.Sighted{Freed: true}, nil
	case !st.Here && (errors.Is(err, content.ErrForbidden) || errors.Is(err, content.ErrCorrupt)):
		return nil, err
	case err != nil: // that there is none at all says nothing: nobody has signed that; nor does what a wrong clock makes of it
		a.v.cfg.Log.Debug("a volume's record can't be read now", "volume", name, "err", err)
		a.v.away.Store(a.v.opening.Load())
		return right.Unreadable{}, nil
	case r.Farm != a.v.cfg.Farm:
		return nil, fmt.Errorf("%w: it belongs to farm %s: ask a node of that farm, or choose another name", content.ErrForbidden, r.Farm)
	}
	a.gaps, a.asked, a.base, a.body, a.taken = gaps, asked, &r, body, ""
	return right.Sighted{Body: body}, nil
}

// takeNext writes the next stamp over the record that was read.
func (a *attached) takeNext(ctx context.Context) (right.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, a.v.patience())
	defer cancel()
	base, body, st := a.record()
	gaps := a.v.pulse.Gaps()
	next := st.Next()
	if !a.line.HasEnded() && body.Policy == catalog.PolicyOrigin {
		if _, err := a.line.EndEpoch(ctx, body); err != nil {
			return right.Unwritten{}, nil
		}
	}
	e, _ := a.v.index.Get(a.Name())
	if blind := cmp.Or(a.blind, e.Blind); st.Here && a.fresh == nil && blind != nil && body.Epoch <= blind.Epoch {
		if why := a.older(body, blind.End); why != "" {
			return right.Outdated{Why: why}, nil
		}
	}
	body.Epoch, body.Incarnation, body.Holder, body.State = next.Epoch, next.Incarnation, st.Self, catalog.Attached
	if a.heir != nil { // its holders are named until they are
		body.Holders, body.DegradedSince = a.heir.Holders, time.Time{}
	}
	if err := a.spec.Change(&body); err != nil {
		return nil, err
	}
	r, err := a.v.records().PutVolume(ctx, a.Name(), base, body)
	switch {
	case err == nil:
		a.mu.Lock()
		defer a.mu.Unlock()
		a.gaps, a.base, a.body = gaps, &r, body
		if a.vol != nil { // it was served unconfirmed, under an epoch that is over
			a.vol.Enter(body.Epoch)
		}
		return right.Written{}, nil
	case records.IsOvertaken(err):
		return right.Overtaken{}, nil
	case !st.Here && errors.Is(err, content.ErrForbidden), errors.Is(err, content.ErrInvalid), errors.Is(err, content.Gone): // what is here is served by any clock
		return nil, err
	}
	a.v.cfg.Log.Debug("a volume's epoch can't be taken now", "volume", a.Name(), "err", err)
	a.set(nil, a.body)
	return right.Unwritten{}, nil
}

// keepRight has on disk what the state is, before anything is done by it.
func (a *attached) keepRight() error {
	a.mu.Lock()
	fresh, body, st := a.fresh, a.body, a.right
	mine := st.Stage == right.Serving
	if mine {
		a.fresh, a.heir, a.spec = nil, nil, terms.Spec{ReadOnly: a.spec.ReadOnly} // what was asked for is done, and may be changed
	}
	a.mu.Unlock()
	switch {
	case fresh != nil && !mine:
		whole := *fresh
		whole.Tried = slices.Clone(st.Tried)
		err := a.v.index.Rewrite(whole)
		if err == nil {
			*fresh = whole
		}
		return err
	case fresh != nil:
		if err := a.v.index.Replace(*fresh); err != nil {
			return err
		}
	}
	_, err := a.v.index.Change(a.Name(), func(e *index.Entry) {
		if a.over.Load() {
			return
		}
		if e.Tried = slices.Clone(st.Tried); mine {
			e.Volume, e.Committed, e.Attached, e.Empty, e.Leaving, e.Adopted, e.Taken, e.Orphan = body, true, true, false, false, false, "", false
		}
	})
	return err
}

// leave tells who had the volume that it is another's, and notes what stays behind there.
func (a *attached) leave(ctx context.Context) {
	seen := a.right.From
	a.v.tell(ctx, seen.Holder, a.Name())
	k, _ := catalog.PolicyHolders(seen.Policy)
	if seen.Policy != catalog.PolicyLocal && seen.DegradedSince.IsZero() && (k == 0 || len(seen.Holders) > 0) {
		return // else the last holder may have lost what it had
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.behind = fmt.Sprintf("it was taken over from %s: what that node alone had acknowledged since %s stays there, as %s", a.v.cfg.Who(seen.Holder), terms.MomentOr(seen.FoldedAt, "it was made"), content.Ref{Kind: content.KindSnapshot, Name: a.name, Seq: seen.Epoch, Orphan: true})
}

// admit opens the gate as far as the state allows.
func (a *attached) admit() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.right.MayAcknowledge(a.body.Policy == catalog.PolicyLocal) {
		a.gate.Admit(a.gaps)
	}
}

// stop has the volume served no more, for good; who has its turn closes it.
func (a *attached) stop(ctx context.Context) error {
	base, body, st := a.record()
	a.mu.Lock()
	if a.taken = cmp.Or(a.taken, st.Why); a.taken == "" {
		a.taken = a.v.names().Holding(*base, body)
	}
	why := a.taken
	a.mu.Unlock()
	err := a.fenced()
	a.gate.End(err)
	if a.vol == nil {
		return a.gone(ctx, why)
	}
	select {
	case a.v.losing <- struct{}{}:
	default:
	}
	return err
}
