package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/turns"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Library finds and opens what volumes begin as.
type Library interface {
	// Base says what a reference stands for, by the origin if it answers.
	Base(ctx context.Context, ref content.Ref) (fetch.Root, error)
	// Image makes a root readable.
	Image(ctx context.Context, r fetch.Root) (*fetch.Image, error)
}

// Registry keeps the records of volumes and snapshots. ErrUnavailable means that no
// origin could be asked, by this node or a member for it.
type Registry interface {
	Volume(ctx context.Context, name string) (catalog.Record, error)
	// SureVolume is Volume, and ErrUnavailable where a single member may have made it up.
	SureVolume(ctx context.Context, name string) (catalog.Record, error)
	// Snapshot returns the record of NAME@N.
	Snapshot(ctx context.Context, name string) (catalog.Record, error)
	// Volumes returns the records of all volumes that this node may know, by name, and
	// Snapshots those of a volume's snapshots, "" for all.
	Volumes(ctx context.Context) []catalog.Record
	Snapshots(ctx context.Context, volume string) []catalog.Record
	// Commit writes a record over the one that it was made from, nil for a name that is
	// free: it is a *catalog.TakenError, ErrConflict or ErrExists if another is there.
	Commit(ctx context.Context, kind content.Kind, name string, base *catalog.Record, body []byte) (catalog.Record, error)
	// Delete writes that the name of a record is free.
	Delete(ctx context.Context, base catalog.Record) error
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
	// Holder names the node that holds a volume to people, and says whether it is away.
	Holder func(context.Context, trust.PublicKey) (name string, away bool)
	// Returned counts how often this node was cut off and is back; nil is never.
	Returned func() int64
	Library  Library
	Registry Registry
	Now      func() time.Time
	Log      *slog.Logger
}

const (
	// tryInterval is how often what could not be done is tried again: a record to be
	// written, a volume to be served. That one waits longer each time: to open it
	// may mean to read all of its journal. Whoever has its disk open waits as well.
	tryInterval = 5 * time.Second
	tryAfterMax = time.Minute
	// detachTimeout is how long requests in flight may take when a volume is
	// detached.
	detachTimeout = 30 * time.Second

	// parallelOpens is how many volumes are opened at once after a start: each
	// waits for the disk, or for the kernel.
	parallelOpens = 16

	transportNBD  = "nbd"
	transportUBLK = "ublk"
	transportAuto = "auto"
)

// Spec is what a Put asks for; zero fields ask for nothing.
type Spec struct {
	Size       int64       `json:"size,omitempty" doc:"bytes; the image's when not given"`
	From       content.Ref `json:"from,omitzero" doc:"image:NAME, volume:NAME, volume:NAME?at=folded or snapshot:NAME@N; a blank disk when not given"`
	Transport  string      `json:"transport,omitempty" enum:"auto,nbd,ublk"`
	Durability string      `json:"durability,omitempty" doc:"what a flush means: local, which it is when not given, farm:K or origin; of a volume that exists: from now on"`
	Degrade    string      `json:"degrade,omitempty" enum:"local" doc:"with farm:K: local lets flushes go on without the holders, once the record says so"`
	ReadOnly   bool        `json:"readonly,omitempty"`
	Takeover   bool        `json:"takeover,omitempty" doc:"attach it although another node holds it; what that one has not folded stays behind as a snapshot"`
	Generation uint64      `json:"generation,omitempty" doc:"an orchestrator's own count: a request with a lower one than the volume has seen is a conflict"`
	Limits     Limits      `json:"limits,omitzero"`
}

// Volumes are this node's volumes. Use: New, Run. Safe for concurrent use.
type Volumes struct {
	cfg   Config
	codec *content.Codec
	doors doors

	opened atomic.Bool // those that were attached are

	changes *turns.Turns[string] // one Put, Detach or Remove of a volume at a time

	index *index

	mu   sync.RWMutex       // never held while anything waits
	open map[string]*device // guarded by mu
}

// device is a volume that is served, that failed to be, or that is on its way.
type device struct {
	opening chan struct{} // closed when another device stands for the volume

	vol   *volume.Volume // nil unless it is served
	front *limit.Device  // vol within its limits, as the doors serve it
	image *fetch.Image
	disk  *ublk.Disk     // nil over NBD
	users sync.WaitGroup // NBD connections

	err   error
	after time.Duration // that it failed it is tried again,
	again time.Time     // which is then
}

// New reads what the volumes' folders say and opens the doors. A folder that can't be
// read is logged, and listed as failed under the folder's name.
func New(ctx context.Context, cfg Config) (*Volumes, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Holder == nil {
		cfg.Holder = func(_ context.Context, k trust.PublicKey) (string, bool) { return k.String(), true }
	}
	if cfg.Returned == nil {
		cfg.Returned = func() int64 { return 0 }
	}
	index, err := loadIndex(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := index.sweep(); err != nil {
		cfg.Log.Error("volumes that were half made or half removed are left as they are; the next start tries again", "err", err)
	}
	for folder, why := range index.broken {
		cfg.Log.Error("a volume's folder can't be read", "folder", folder, "err", why)
	}
	v := &Volumes{cfg: cfg, codec: content.NewCodec(), index: index, changes: turns.New[string](1), open: map[string]*device{}}
	for _, e := range index.sorted() {
		if e.Attached {
			v.open[e.Name] = &device{opening: make(chan struct{})}
		}
	}
	if v.doors, err = openDoors(ctx, cfg, exports{v}); err != nil {
		return nil, err
	}
	return v, nil
}

// openAll opens the volumes that were attached. One that can't be opened is kept, and
// shown as failed.
func (v *Volumes) openAll(ctx context.Context) error {
	defer v.opened.Store(true)
	entries := v.index.sorted()
	if err := v.doors.sweep(ctx, entries); err != nil {
		v.cfg.Log.Error("disks that no volume has any more are left", "err", err)
	}
	group := new(errgroup.Group)
	group.SetLimit(parallelOpens)
	for _, e := range entries {
		if e.Attached {
			group.Go(func() error {
				v.openLater(ctx, e.Name)
				return nil
			})
		}
	}
	return group.Wait()
}

// Run opens the volumes and serves them until ctx ends; then it drains and closes
// them. Disks that are in use stay with the kernel for the next start, and so do
// all when the cause is ErrHandover.
func (v *Volumes) Run(ctx context.Context) error {
	err := v.doors.run(ctx, func(ctx context.Context) error {
		if err := v.openAll(ctx); err != nil {
			return err
		}
		return v.keepTrying(ctx)
	}, v.leaveDisks)
	err = errors.Join(err, v.each(func(_ string, d *device) error {
		if d.vol == nil {
			return nil
		}
		return d.vol.Close()
	}))
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.open)
	return err
}

// Opened reports whether the volumes that were attached are as they will be.
func (v *Volumes) Opened() bool { return v.opened.Load() }

// Collectors returns the metrics of the volumes and the doors.
func (v *Volumes) Collectors() []prometheus.Collector {
	return append(v.doors.collectors(),
		states{v, prometheus.NewDesc("grange_volumes", "Volumes of this node by state.", []string{"state"}, nil)})
}

// turn waits until nobody else changes the volume of that name, and returns what ends the
// caller's turn.
func (v *Volumes) turn(name string) (end func()) {
	end, _ = v.changes.Take(context.Background(), name, 1) // it fails with the context alone
	return end
}

// device returns what is open under a name, nil if nothing is.
func (v *Volumes) device(name string) *device {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.open[name]
}

// setDevice keeps a device under a name; nil takes away what was there.
func (v *Volumes) setDevice(name string, d *device) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.open[name]; old != nil && old.opening != nil {
		defer close(old.opening)
	}
	if d == nil {
		delete(v.open, name)
		return
	}
	v.open[name] = d
}

// each calls f for all devices, some at once, and joins the errors.
func (v *Volumes) each(f func(name string, d *device) error) error {
	v.mu.RLock()
	open := maps.Clone(v.open)
	v.mu.RUnlock()
	var group errgroup.Group
	group.SetLimit(parallelOpens)
	errs := make([]error, len(open))
	for i, name := range slices.Sorted(maps.Keys(open)) {
		group.Go(func() error {
			errs[i] = f(name, open[name])
			return nil
		})
	}
	return errors.Join(append(errs, group.Wait())...)
}

// Count returns how many volumes are attached.
func (v *Volumes) Count() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return len(v.open)
}

func (s Spec) withDefaults() (Spec, error) {
	switch s.Transport {
	case "", transportAuto, transportNBD, transportUBLK:
		s.Transport = cmp.Or(s.Transport, transportAuto)
	default:
		return s, fmt.Errorf("transport %.20q: %w: want auto, ublk or nbd", s.Transport, content.ErrInvalid)
	}
	if s.Durability != "" && s.Durability != catalog.PolicyLocal {
		return s, fmt.Errorf("durability %.20q: %w: this version knows local", s.Durability, content.ErrInvalid)
	}
	if s.Degrade != "" || s.Generation != 0 || s.Limits != (Limits{}) {
		return s, later("degrade, generation and limits")
	}
	if s.Takeover {
		return s, fmt.Errorf("takeover: %w in this version: detach the volume on the node that holds it", errors.ErrUnsupported)
	}
	if s.Size < 0 || s.Size > content.SizeMax || s.Size%content.SectorSize != 0 {
		return s, fmt.Errorf("size %d: %w: want a multiple of %d up to %d", s.Size, content.ErrInvalid, content.SectorSize, int64(content.SizeMax))
	}
	s.Durability = catalog.PolicyLocal
	return s, nil
}

// Put creates a volume, or attaches one that this node has. created is false when
// it was here and attached already. What contradicts a volume that exists is
// ErrConflict.
func (v *Volumes) Put(ctx context.Context, name string, spec Spec) (_ View, created bool, err error) {
	if err := content.CheckName(name); err != nil {
		return View{}, false, err
	}
	if spec, err = spec.withDefaults(); err == nil {
		_, err = v.doors.choose(spec.Transport)
	}
	if err != nil {
		return View{}, false, fmt.Errorf("volume %q: %w", name, err)
	}
	defer v.turn(name)()
	e, here := v.index.get(name)
	d := v.device(name)
	switch {
	case !here && spec.Size == 0 && spec.From == (content.Ref{}):
		err = v.elsewhere(ctx, name)
	case !here:
		created = true
		err = v.create(ctx, name, spec)
	default:
		err = e.agrees(spec)
		switch served := d != nil && d.vol != nil; {
		case err != nil:
		case !served:
			created = true
			err = v.reattach(ctx, e, spec)
		case !v.doors.serves(d, spec.Transport):
			err = fmt.Errorf("%w: it is not served over %s; detach it first", content.Attached, spec.Transport)
		case spec.ReadOnly && !d.vol.Geometry().ReadOnly:
			err = fmt.Errorf("%w: it is attached for writing; detach it first", content.Attached)
		}
	}
	if err != nil {
		return View{}, false, fmt.Errorf("volume %q: %w", name, err)
	}
	view, err := v.Get(name)
	return view, created, err
}

// agrees fails when a spec asks for something else than the volume is.
func (e entry) agrees(s Spec) error {
	switch {
	case s.From != (content.Ref{}) && s.From != e.From:
		return fmt.Errorf("%w: it was created from %q, not from %q; choose another name, or remove it first", content.Differs, e.From, s.From)
	case s.Size != 0 && s.Size != e.Size:
		return fmt.Errorf("%w: it has %d bytes, not %d", content.Differs, e.Size, s.Size)
	}
	return nil
}

// reattach serves a volume again. That it is read-only is for this time alone: it
// saves what is left of a damaged one, and lets others be looked at.
func (v *Volumes) reattach(ctx context.Context, e entry, spec Spec) error {
	if spec.Transport == transportNBD {
		if err := v.doors.giveUpDisk(ctx, e, false); err != nil {
			return err
		}
	}
	e.Attached = true
	if spec.Transport != transportAuto {
		e.Transport = spec.Transport
	}
	if err := v.index.put(e); err != nil {
		return err
	}
	e.ReadOnly = e.ReadOnly || spec.ReadOnly
	return v.attach(ctx, e)
}

// openLater opens a volume of which a device says that it is opening, unless somebody
// else has done so meanwhile.
func (v *Volumes) openLater(ctx context.Context, name string) {
	defer v.turn(name)()
	e, ok := v.index.get(name)
	switch d := v.device(name); {
	case d == nil || d.opening == nil:
	case !ok || ctx.Err() != nil:
		v.setDevice(name, nil)
	default:
		_ = v.attach(ctx, e) // List shows it
	}
}

// attach opens a volume and serves it. A failure is kept for List to show, and for
// serveLater. Called in the volume's turn.
func (v *Volumes) attach(ctx context.Context, e entry) error {
	before := v.device(e.Name)
	if before == nil {
		before = &device{opening: make(chan struct{})}
		v.setDevice(e.Name, before)
	}
	d := &device{}
	d.err = v.openDevice(ctx, e, d)
	if d.err == nil {
		if d.err = v.openDisk(ctx, e, d); d.err != nil {
			d.err, d.vol, d.disk = errors.Join(d.err, d.vol.Close()), nil, nil
		}
	}
	if d.err != nil {
		d.after = tryInterval
		if before.err != nil {
			d.after = min(2*before.after, tryAfterMax)
		}
		d.again = v.cfg.Now().Add(d.after)
		if before.err == nil || before.err.Error() != d.err.Error() {
			v.cfg.Log.Error("a volume can't be served", "volume", e.Name, "err", d.err)
		}
	}
	v.setDevice(e.Name, d)
	return d.err
}

func (v *Volumes) openDevice(ctx context.Context, e entry, d *device) error {
	if err := v.isOwned(e); err != nil {
		return err
	}
	cfg := volume.Config{Dir: v.index.path(e), ID: e.ID, Size: e.Size, Epoch: e.Epoch, ReadOnly: e.ReadOnly, Log: v.cfg.Log}
	if len(e.Head) > 0 {
		head, err := pack.DecodeHead(v.codec, e.Head)
		if err != nil {
			return err
		}
		if d.image, err = v.cfg.Library.Image(ctx, fetch.Root{Head: head}); err != nil {
			return err
		}
		cfg.Source, cfg.SourceSize, cfg.ChunkSize = d.image, head.Root.Size, head.Root.ChunkSize
	}
	var err error
	if d.vol, err = volume.Open(cfg); err == nil {
		d.front = limit.New(d.vol, limit.Limits{})
	}
	return err
}

// Detach stops serving a volume; its data stays on this node. One that is in use is
// content.ErrConflict, unless forced.
func (v *Volumes) Detach(ctx context.Context, name string, force bool) (View, error) {
	defer v.turn(name)()
	e, ok := v.index.get(name)
	if !ok {
		return View{}, fmt.Errorf("detach volume %q: %w", name, v.elsewhere(ctx, name))
	}
	err := v.close(ctx, name, force)
	if v.device(name) == nil { // whatever went wrong: a restart must not serve it again
		err = errors.Join(err, v.detached(e))
	}
	if err != nil {
		return View{}, fmt.Errorf("detach volume %q: %w", name, err)
	}
	return v.Get(name)
}

// close drains and closes a device, if it is open. One that is in use stays open,
// unless forced.
func (v *Volumes) close(ctx context.Context, name string, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	d := v.device(name)
	switch {
	case d == nil || d.vol == nil:
		e, _ := v.index.get(name)
		if err := v.doors.giveUpDisk(ctx, e, force); err != nil {
			return err
		}
	case d.disk != nil:
		if err := d.disk.Stop(ctx, force); err != nil {
			return err
		}
	case !force:
		if err := v.doors.unused(ctx, name); err != nil {
			return err
		}
	}
	v.setDevice(name, nil)
	if d == nil || d.vol == nil {
		return nil
	}
	err := v.doors.nbd.Detach(ctx, name)
	if errors.Is(err, content.ErrUnavailable) { // a request is stuck: its connection closes the volume when it ends
		go func() { d.users.Wait(); d.vol.Close() }()
		return err
	}
	d.users.Wait()
	return errors.Join(err, d.vol.Close())
}

// Remove deletes a volume and its record; one that the mesh does not have is success.
// One that is in use, or that another node holds, is content.ErrConflict; to force it
// is of use where it is in use, and where that node, or its folder, is away.
func (v *Volumes) Remove(ctx context.Context, name string, spec RemoveSpec) error {
	if err := content.CheckName(name); err != nil {
		return err
	}
	defer v.turn(name)()
	if why := v.index.broken[name]; why != nil {
		return fmt.Errorf("remove volume %q: %w", name, why)
	}
	e, ok := v.index.get(name)
	if !ok {
		return v.removeElsewhere(ctx, name, spec.Force)
	}
	err := v.close(ctx, name, spec.Force)
	if err == nil {
		err = v.removeRecord(ctx, e)
	}
	switch {
	case err == nil:
		return v.index.remove(e)
	case v.device(name) != nil:
		return fmt.Errorf("remove volume %q: %w", name, err)
	}
	return errors.Join(fmt.Errorf("remove volume %q: %w; it stays, detached", name, err), v.detached(e))
}

// removeRecord deletes the record of a volume of this node, if it has one.
func (v *Volumes) removeRecord(ctx context.Context, e entry) error {
	r, body, err := v.record(ctx, e.Name)
	if err == nil && body.ID == e.ID { // else it is of another volume that has the name
		err = v.cfg.Registry.Delete(ctx, r)
	}
	if errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrUnavailable) && !e.Committed {
		return nil
	}
	return err
}

func (v *Volumes) detached(e entry) error {
	e.Attached = false
	return v.index.put(e)
}
