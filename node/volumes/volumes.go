package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/turns"
	"github.com/grangemesh/grange/node/volumes/doors"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/gate"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moves"
	"github.com/grangemesh/grange/node/volumes/names"
	"github.com/grangemesh/grange/node/volumes/orphans"
	"github.com/grangemesh/grange/node/volumes/readers"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
)

// Library finds and opens what volumes begin as.
type Library interface {
	// Stands says what a reference stands for, by the origin if it answers; Base to who makes a disk of it.
	Stands(ctx context.Context, ref content.Ref) (fetch.Root, error)
	Base(ctx context.Context, ref content.Ref) (fetch.Root, error)
	// Image makes a root readable.
	Image(ctx context.Context, r fetch.Root) (*fetch.Image, error)
}

// Config is what Volumes is built from.
type Config struct {
	// Dir holds the volumes' folders.
	Dir string
	// NBD opens what NBD is served on, of which the first listener is told to clients.
	NBD func(context.Context) (nbd.Config, error)
	// UBLK configures the kernel's block devices, where it has them.
	UBLK ublk.Config
	// Self and NodeID name this node in records and to people.
	Self   trust.PublicKey
	NodeID string
	Farm   string
	// Who names a node to people, with its ID; Called is its name alone, empty where that is
	// not known. Away says whether it is away, which may take seconds.
	Who, Called func(trust.PublicKey) string
	Away        func(context.Context, trust.PublicKey) bool
	// Call asks another member, whose Answer answers; Member finds one by name or ID.
	Call   func(ctx context.Context, to trust.PublicKey, method string, body []byte) ([]byte, error)
	Member func(ctx context.Context, who string) (key trust.PublicKey, name string, err error)
	// Returned counts how often this node was cut off and is back.
	Returned func() int64
	Library  Library
	// Opened is told of what a volume's users are about to read, and whether a start opens it, over which they go on; or nil.
	Opened   func(m *fetch.Image, e index.Entry, start bool)
	Registry records.Registry
	// Origin returns the bucket, or says why nothing can be written to it; nil is for who
	// has none. Signer vouches for what is stored there.
	Origin func() (bucket.Bucket, error)
	Signer trust.Signer
	// Holders are members of the farm that hold what volumes write.
	Holders *holders.Farm
	Keep    func(content.Verified) // takes what folds make, to be read without the bucket; or nil
	// Publish writes the record of an image whose packs are in the bucket; nil is for who may not.
	Publish func(ctx context.Context, name string, body catalog.Image, replace bool) error
	Now     func() time.Time
	// Clock goes on while this host sleeps; nil is the system's.
	Clock func() time.Duration
	Log   *slog.Logger
	// At is told of each step after which a crash leaves what the next start has to understand; for tests, nil in the product.
	At func(step string)
}

const (
	// tryInterval is how often what could not be done is tried again: a record to be written, a volume to be served. That
	// one waits longer each time: to open it may mean to read all of its journal. Whoever has its disk open waits as well.
	tryInterval = 5 * time.Second
	tryAfterMax = time.Minute
	// detachTimeout is how long requests in flight may take when a volume is detached.
	detachTimeout = 30 * time.Second

	// parallelOpens is how many volumes are opened at once after a start: each waits for the disk, or for the kernel.
	parallelOpens = 16
)

// Volumes are this node's volumes. Use: New, Run. Safe for concurrent use.
type Volumes struct {
	cfg   Config
	codec *content.Codec
	doors doors.Doors

	opening, opened atomic.Bool // those that were attached

	changes *turns.Turns[string] // one Put, Detach or Remove of a volume at a time

	index *index.Index

	// incarnation is the random number of this start, pulse tells when it stood still, and
	// losing has one when a volume was lost that is served still.
	incarnation uint64
	pulse       *gate.Pulse
	losing      chan struct{}
	errands     moves.Errands // that Run does
	moves       moves.Moves
	orphans     *orphans.Keeper
	away        atomic.Bool // the origin did not answer a start

	open  sync.Map      // *attached, by name
	packs *build.Shared // of folds
}

// New reads what the volumes' folders say and opens the doors. A folder that can't be
// read is logged, and listed as failed under the folder's name.
func New(ctx context.Context, cfg Config) (*Volumes, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.At == nil {
		cfg.At = func(string) {}
	}
	index, err := index.Load(cfg.Dir, cfg.At)
	if err != nil {
		return nil, err
	}
	if err := index.Sweep(); err != nil {
		cfg.Log.Error("volumes that were half made or half removed are left as they are; the next start tries again", "err", err)
	}
	for folder, why := range index.Broken {
		cfg.Log.Error("a volume's folder can't be read", "folder", folder, "err", why)
	}
	v := &Volumes{cfg: cfg, packs: new(build.Shared), codec: content.NewCodec(), index: index, changes: turns.New[string](1), pulse: gate.NewPulse(cfg.Clock), losing: make(chan struct{}, 1), errands: make(moves.Errands), incarnation: rand.Uint64()}
	v.moves.Errands, v.orphans = v.errands, v.newOrphans()
	for _, e := range index.Sorted() {
		if e.Attached {
			v.open.Store(e.Name, &attached{opening: make(chan struct{})})
		}
	}
	if v.doors, err = doors.Open(ctx, doors.Config{NBD: cfg.NBD, UBLK: cfg.UBLK, Self: cfg.Self, Exports: exports{v}, Log: cfg.Log}); err != nil {
		return nil, err
	}
	return v, nil
}

// openAll opens the volumes that were attached. One that can't be opened is kept, and shown as failed.
func (v *Volumes) openAll(ctx context.Context) {
	v.opening.Store(true)
	defer v.opened.Store(true)
	defer v.opening.Store(false)
	if err := v.doors.Sweep(ctx, v.index.Sorted()); err != nil {
		v.cfg.Log.Error("disks that no volume has any more are left", "err", err)
	}
	v.each(func(name string, _ *attached) { v.openLater(ctx, name) })
}

// Run opens the volumes and serves them until ctx ends; then it drains and closes them. Disks that
// are in use stay with the kernel for the next start, and so do all when the cause is ErrHandover.
func (v *Volumes) Run(ctx context.Context) error {
	err := v.doors.Run(ctx, func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return v.watchPulse(ctx) }) // one that opens late keeps the others from no acknowledgement
		due := right.NewLooks(v.cfg.Returned(), v.cfg.Now())
		v.openAll(ctx)
		group.Go(func() error { return v.keepTrying(ctx, due) })
		return group.Wait()
	}, v.leaveDisks)
	ends := make(chan error, v.Count()+1)
	v.each(func(_ string, d *attached) {
		if d.vol != nil {
			ends <- d.shut()
		}
	})
	v.open.Clear()
	close(ends)
	for end := range ends {
		err = errors.Join(err, end)
	}
	return err
}

// Opened reports whether the volumes that were attached are as they will be.
func (v *Volumes) Opened() bool { return v.opened.Load() }

// Collectors returns the metrics of the volumes and the doors.
func (v *Volumes) Collectors() []prometheus.Collector {
	return append(v.doors.Collectors(), terms.Metrics(v.List))
}

// turn waits until nobody else changes the volume of that name, and returns what ends the turn.
func (v *Volumes) turn(name string) (end func()) {
	end, _ = v.changes.Take(context.Background(), name, 1) // it fails with the context alone
	return end
}

// records are those of the mesh.
func (v *Volumes) records() records.Records {
	return records.Records{Registry: v.cfg.Registry, Codec: v.codec}
}

// device returns what is open under a name, nil if nothing is.
func (v *Volumes) device(name string) *attached {
	d, _ := v.open.Load(name)
	a, _ := d.(*attached)
	return a
}

// setDevice keeps a device under a name; nil takes away what was there.
func (v *Volumes) setDevice(name string, d *attached) {
	old := v.device(name)
	if d == nil {
		v.open.Delete(name)
	} else {
		v.open.Store(name, d)
	}
	if old != nil && old.opening != nil {
		close(old.opening)
	}
}

// devices yields all.
func (v *Volumes) devices(yield func(name string, d *attached) bool) {
	v.open.Range(func(name, d any) bool { return yield(name.(string), d.(*attached)) })
}

// each calls f for all devices, some at once.
func (v *Volumes) each(f func(name string, d *attached)) {
	var group errgroup.Group
	group.SetLimit(parallelOpens)
	for name, d := range v.devices {
		group.Go(func() error { f(name, d); return nil })
	}
	_ = group.Wait() // none fails
}

// Index is of what is on this node's disk.
func (v *Volumes) Index() *index.Index { return v.index }

// Count returns how many volumes are attached.
func (v *Volumes) Count() (n int) {
	for range v.devices {
		n++
	}
	return n
}

// Put creates a volume, or attaches one that this node has. created is false when it was here and
// attached already. What contradicts a volume that exists is ErrConflict.
func (v *Volumes) Put(ctx context.Context, name string, spec terms.Spec) (_ terms.View, created bool, err error) {
	if err := content.CheckName(name); err != nil {
		return terms.View{}, false, err
	}
	defer terms.During(&err, "volume %q", name)
	if spec, err = spec.WithDefaults(); err == nil {
		_, err = v.doors.Choose(spec.Transport)
	}
	if err != nil {
		return terms.View{}, false, err
	}
	defer v.turn(name)()
	if created, err = v.put(ctx, name, spec); err != nil {
		return terms.View{}, false, err
	}
	view, err := v.Get(name)
	return view, created, err
}

// put is Put in the volume's turn.
func (v *Volumes) put(ctx context.Context, name string, spec terms.Spec) (created bool, err error) {
	e, here := v.index.Get(name)
	d := v.device(name)
	if why := v.index.Broken[name]; why != nil {
		return false, why
	}
	if here && e.Empty && d == nil {
		if _, body, err := v.records().Volume(ctx, name); errors.Is(err, content.ErrNotFound) || err == nil && body.ID != e.ID { // what it was is no more
			if err := v.index.Remove(e); err != nil {
				return false, err
			}
			here = false
		}
	}
	switch {
	case spec.Reads() && (!here || e.Reader || e.Empty && d == nil):
		return v.read(ctx, e, name, spec.Transport)
	case e.Reader:
		return false, fmt.Errorf("%w: it is only read here, beside whoever writes it; detach it here first", content.Attached)
	case !here:
		return true, v.putNew(ctx, name, spec)
	}
	if err := spec.Agrees(e.Volume); err != nil {
		return false, err
	}
	switch served := d != nil && d.vol != nil; {
	case !served:
		return true, v.reattach(ctx, e, spec)
	case spec.Transport != terms.Auto && (spec.Transport == terms.UBLK) != (d.disk != nil):
		return false, fmt.Errorf("%w: it is not served over %s; detach it first", content.Attached, spec.Transport)
	case spec.ReadOnly != d.vol.Geometry().ReadOnly && !e.ReadOnly:
		return false, fmt.Errorf("%w: it is attached %s; detach it first", content.Attached, map[bool]string{true: "for writing", false: "read-only"}[spec.ReadOnly])
	}
	return false, d.ask(ctx, spec)
}

// putNew creates a volume that no volume here is, or attaches it if the mesh has it.
func (v *Volumes) putNew(ctx context.Context, name string, spec terms.Spec) error {
	creates := spec.Size != 0 || spec.From != (content.Ref{})
	r, body, err := v.records().Volume(ctx, name)
	switch {
	case err == nil:
		if err := spec.Agrees(body); err != nil && (spec.Takeover || body.State == catalog.Released) { // else it is held
			return err
		}
		return v.attach(ctx, index.Entry{Name: name, Committed: true, Empty: true}, spec)
	case creates && (errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrUnavailable)):
		return v.create(ctx, name, spec, r, errors.Is(err, content.ErrNotFound))
	case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrUnavailable):
		return v.names().Elsewhere(ctx, name)
	}
	return err
}

// reattach serves a volume again. That it is read-only is for this time alone: it
// saves what is left of a damaged one, and lets others be looked at.
func (v *Volumes) reattach(ctx context.Context, e index.Entry, spec terms.Spec) error {
	if spec.Transport == terms.NBD {
		if err := v.doors.GiveUpDisk(ctx, e, false); err != nil {
			return err
		}
	}
	e, err := v.index.Change(e.Name, func(e *index.Entry) {
		e.Attached, e.Removing = true, false
		if spec.Transport != terms.Auto {
			e.Transport = spec.Transport
		}
	})
	if err != nil {
		return err
	}
	return v.attach(ctx, e, spec)
}

// openLater opens a volume of which a device says that it is opening, unless somebody else has done so meanwhile.
func (v *Volumes) openLater(ctx context.Context, name string) {
	defer v.turn(name)()
	e, ok := v.index.Get(name)
	switch d := v.device(name); {
	case d == nil || d.opening == nil:
	case !ok || ctx.Err() != nil:
		v.setDevice(name, nil)
	default:
		_ = v.attach(ctx, e, terms.Spec{}) // List shows it
	}
}

// attach serves a volume that the mesh has: of this node, or released, or taken over if that is
// asked for. A failure is kept for List to show, and for serveLater. Called in the volume's turn.
func (v *Volumes) attach(ctx context.Context, e index.Entry, spec terms.Spec) error {
	before := v.device(e.Name)
	if before == nil {
		before = &attached{opening: make(chan struct{})}
		v.setDevice(e.Name, before)
	}
	a := v.newAttached(e, spec)
	if a.err = a.claim(ctx, e); a.err == nil {
		a.err = a.present(ctx)
	}
	a.err = errors.Join(a.err, a.drop(a.err)) // nothing is left of one that went well
	now, here := v.index.Get(e.Name)
	doubt := here && (len(now.Tried) > 0 || spec == (terms.Spec{})) && errors.Is(a.err, content.ErrUnavailable)
	if a.err != nil && (!here || now.Empty && !now.Reader && !doubt) { // it is not this node's, and will not be
		v.setDevice(e.Name, nil)
		if here {
			return errors.Join(a.err, v.detached(now))
		}
		return a.err
	}
	return a.settled(before)
}

// settled has the volume be as an attach has left it; before is how it was.
func (a *attached) settled(before *attached) error {
	if a.err != nil {
		a.after = tryInterval
		if before.err != nil {
			a.after = min(2*before.after, tryAfterMax)
		}
		a.again = a.v.cfg.Now().Add(a.after)
		if before.err == nil || before.err.Error() != a.err.Error() {
			a.v.cfg.Log.Error("a volume can't be served", "volume", a.Name(), "err", a.err)
		}
	}
	a.v.setDevice(a.Name(), a)
	return a.err
}

// close drains and closes a volume, if it is open; last is called when nobody uses it any
// more, and may be nil. One that is in use stays open, unless forced.
func (v *Volumes) close(ctx context.Context, name string, force bool, last func(*attached) error) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	d := v.device(name)
	switch {
	case d == nil || d.vol == nil:
		e, _ := v.index.Get(name)
		if err := v.doors.GiveUpDisk(ctx, e, force); err != nil {
			return err
		}
	case d.disk != nil:
		if err := d.disk.Stop(ctx, force); err != nil {
			return err
		}
	default:
		open, err := d.users.Shut(ctx, force)
		if err != nil {
			return err
		}
		defer open()
	}
	v.setDevice(name, nil)
	if d == nil || d.vol == nil {
		return nil
	}
	err := v.doors.Detach(ctx, name)
	if errors.Is(err, content.ErrUnavailable) { // a request is stuck: its connection closes the volume when it ends
		go func() {
			d.users.Wait()
			if err := d.shut(); err != nil {
				v.cfg.Log.Error("a volume whose client was late to leave is not closed as it should be", "volume", name, "err", err)
			}
		}()
		return err
	}
	d.users.Wait()
	if last != nil {
		err = errors.Join(err, last(d))
	}
	return errors.Join(err, d.shut())
}

// Remove deletes a volume and its record; one that the mesh does not have is success. One that is in use, or that another
// node holds, is content.ErrConflict; to force it is of use where it is in use, and where that node, or its folder, is away.
// What is left of one that was taken away is its orphan's, and goes with that alone.
func (v *Volumes) Remove(ctx context.Context, name string, spec terms.RemoveSpec) (err error) {
	if err := content.CheckName(name); err != nil {
		return err
	}
	defer v.turn(name)()
	defer terms.During(&err, "remove volume %q", name)
	e, ok := v.index.Get(name)
	switch why, means := v.index.Broken[name], spec.Means(e.ID); {
	case why != nil:
		return why
	case !ok, !means && e.Empty:
		return v.names().Remove(ctx, name, spec)
	case !means:
		return nil
	}
	err = (readers.Farm{Live: v.cfg.Holders.Live, Call: v.cfg.Call, Who: v.cfg.Who}).MayRemove(ctx, e, spec.Force)
	if err == nil {
		err = v.letGo(ctx, e, v.device(name), spec)
	}
	if err != nil {
		return err
	}
	remove := v.index.Remove
	err = v.close(ctx, name, spec.Force, func(a *attached) error { return v.letGo(ctx, e, a, spec) }) // what it got meanwhile
	switch taken := e.Taken != "" && !e.Empty; {
	case err != nil:
	case taken && !spec.Purge && !e.Removing:
		remove = v.index.SetAside
	default:
		if !taken || e.Removing {
			removing := func(is bool) {
				e, _ = v.index.Change(name, func(e *index.Entry) { e.Attached, e.Removing = false, is })
			} // on a full disk it goes too
			removing(true)
			if err = v.names().RemoveOwn(ctx, e, v.incarnation, spec); errors.Is(err, content.ErrConflict) {
				removing(false)
			}
		}
		if err == nil && taken { // its name is free, or another volume's
			err = v.orphans.Purge(ctx, e)
		}
	}
	switch {
	case err == nil:
		return remove(e)
	case v.device(name) != nil, e.Empty:
		return err
	}
	return errors.Join(fmt.Errorf("%w; it stays, detached", err), v.detached(e))
}

func (v *Volumes) detached(e index.Entry) error {
	if e.Reader {
		return v.index.Remove(e)
	}
	_, err := v.index.Change(e.Name, func(e *index.Entry) { e.Attached = false })
	return err
}

// letGo is what happens to the snapshots of a volume before its folder goes: they go too,
// or get into the bucket, if this node has some that are not there. a has it open, if anybody does.
func (v *Volumes) letGo(ctx context.Context, e index.Entry, a *attached, spec terms.RemoveSpec) error {
	if a != nil && a.folds != nil { // also those that are being made
		e = a.waiting()
	}
	switch {
	case spec.Purge:
		return nil
	case e.Taken != "" && !e.Empty && !e.Orphan && !e.Removing:
		return names.NoSnapshotYet()
	case e.Taken != "" || len(e.Waiting) == 0, (a == nil || a.folds == nil) && spec.Force:
		return nil
	case a == nil || a.folds == nil:
		return fmt.Errorf("%w: %d snapshots of it are on this disk alone: attach it first, or use --purge", content.ErrConflict, len(e.Waiting))
	}
	if err := a.folds.Run(ctx, fold.Safe); err != nil && !spec.Force {
		return fmt.Errorf("%d snapshots of it are on this disk alone: %w", len(e.Waiting), err)
	}
	return nil
}
