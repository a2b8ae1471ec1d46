package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Base is what a volume begins as.
type Base struct {
	Head     pack.Head
	Lineage  []content.CID
	Envelope []byte
}

// Library finds and opens what volumes begin as.
type Library interface {
	// Base says what a reference stands for, by the origin if it answers.
	Base(ctx context.Context, ref content.Ref) (Base, error)
	// Image makes a root readable.
	Image(ctx context.Context, b Base) (*fetch.Image, error)
}

// Registry keeps the records of volumes. ErrUnavailable means that no origin
// could be asked, by this node or a member for it.
type Registry interface {
	Volume(ctx context.Context, name string) (catalog.Record, error)
	CommitVolume(ctx context.Context, name string, body catalog.Volume, base *catalog.Record) (catalog.Record, error)
	DeleteVolume(ctx context.Context, base catalog.Record) error
}

// Config is what Volumes is built from.
type Config struct {
	// Dir holds the volumes' folders and the device map.
	Dir string
	// Socket is the path that NBD is served on.
	Socket string
	// UBLK configures the kernel's block devices, where it has them.
	UBLK ublk.Config
	// Self and NodeID name this node in records and to people.
	Self     trust.PublicKey
	NodeID   string
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

	durabilityLocal = "local"
	transportNBD    = "nbd"
	transportUBLK   = "ublk"
	transportAuto   = "auto"
)

// State is how a volume stands on this node.
type State string

// The states.
const (
	StateAttached    State = "attached"
	StateUncommitted State = "uncommitted"
	StateDetached    State = "detached"
	StateFailed      State = "failed"
)

// Spec is what a Put asks for; zero fields ask for nothing.
type Spec struct {
	Size       int64       `json:"size,omitempty" doc:"bytes; the image's when not given"`
	From       content.Ref `json:"from,omitzero" doc:"image:NAME; a blank disk when not given"`
	Transport  string      `json:"transport,omitempty" enum:"auto,nbd,ublk"`
	Durability string      `json:"durability,omitempty" doc:"local"`
	ReadOnly   bool        `json:"readonly,omitempty"`
	Takeover   bool        `json:"takeover,omitempty"`
}

// View describes a volume.
type View struct {
	Name       string
	Size       int64
	From       content.Ref
	Transport  string
	Device     string
	Durability string
	ReadOnly   bool
	Epoch      uint64
	State      State
	Detail     string
	Node       string
	Root       content.CID
	DirtyBytes int64
	Bytes      [4]int64 // by fetch.Source
}

// Volumes are this node's volumes. Use: New, Run. Safe for concurrent use.
type Volumes struct {
	cfg   Config
	codec *content.Codec
	doors doors

	opened atomic.Bool // those of the device map are

	change sync.Mutex // serialises changes: one Put, Detach or Remove at a time

	devs *deviceMap

	mu   sync.RWMutex       // never held while anything waits
	open map[string]*device // guarded by mu
}

// device is a volume that is served, or that failed to be.
type device struct {
	vol   *volume.Volume
	image *fetch.Image
	disk  *ublk.Disk     // nil over NBD
	users sync.WaitGroup // NBD connections

	err   error
	after time.Duration // that it failed it is tried again,
	again time.Time     // which is then
}

// New reads the device map and opens the doors.
func New(ctx context.Context, cfg Config) (*Volumes, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	devs, err := loadDeviceMap(filepath.Join(cfg.Dir, devicesFile))
	if err != nil {
		return nil, err
	}
	v := &Volumes{cfg: cfg, codec: content.NewCodec(), devs: devs, open: map[string]*device{}}
	if v.doors, err = openDoors(ctx, cfg, exports{v}); err != nil {
		return nil, err
	}
	return v, nil
}

// openAll opens the volumes of the device map, as they were attached; what was
// half created or half removed is undone. A volume that can't be opened is kept,
// and shown as failed.
func (v *Volumes) openAll(ctx context.Context) error {
	v.change.Lock()
	defer v.change.Unlock()
	defer v.opened.Store(true)
	entries := v.devs.sorted()
	if err := v.doors.sweep(ctx, entries); err != nil {
		v.cfg.Log.Error("disks that no volume has any more are left", "err", err)
	}
	group := new(errgroup.Group)
	group.SetLimit(parallelOpens)
	for _, e := range entries {
		switch {
		case e.Stage != ready:
			v.cfg.Log.Info("clearing away a volume that was half made or half removed", "volume", e.Name, "stage", e.Stage)
			if err := v.erase(e); err != nil {
				v.cfg.Log.Error("a volume can't be cleared away; the next start tries again", "volume", e.Name, "err", err)
			}
		case e.Attached && v.device(e.Name) == nil: // the API may have been quicker
			group.Go(func() error {
				_ = v.attach(ctx, e) // List shows it
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
		v.keepTrying(ctx)
		return nil
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

// Opened reports whether the volumes of the device map are as they will be.
func (v *Volumes) Opened() bool { return v.opened.Load() }

// Collectors returns the metrics of the doors.
func (v *Volumes) Collectors() []prometheus.Collector { return v.doors.collectors() }

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

// List returns all volumes of this node, by name.
func (v *Volumes) List() []View {
	var out []View
	for _, e := range v.devs.sorted() {
		out = append(out, v.view(e))
	}
	return out
}

// Get returns one volume of this node.
func (v *Volumes) Get(name string) (View, error) {
	e, ok := v.devs.get(name)
	if !ok {
		return View{}, fmt.Errorf("volume %q: %w on this node", name, content.ErrNotFound)
	}
	return v.view(e), nil
}

func (v *Volumes) view(e entry) View {
	out := View{
		Name: e.Name, Size: e.Size, From: e.From, Transport: e.Transport, Durability: e.Durability, ReadOnly: e.ReadOnly,
		Epoch: e.Epoch, State: StateDetached, Node: v.cfg.NodeID,
	}
	if head, err := pack.DecodeHead(v.codec, e.Head); err == nil {
		if root, err := head.Root.Encode(v.codec); err == nil {
			out.Root = root.CID()
		}
	}
	d := v.device(e.Name)
	switch {
	case d == nil:
	case d.err != nil:
		out.State, out.Detail = StateFailed, d.err.Error()
	default:
		out.State, out.DirtyBytes = StateAttached, d.vol.DirtyBytes()
		out.Transport, out.Device = v.doors.address(e.Name, d)
		out.ReadOnly = d.vol.Geometry().ReadOnly
		if d.image != nil {
			out.Bytes = d.image.Bytes()
			if w := d.image.Waiting(); w.Reads > 0 {
				out.Detail = fmt.Sprintf("%d reads wait, the first for %s of %s (--io-timeout): %v", w.Reads, time.Since(w.Since).Round(time.Second), w.Timeout, w.Why)
			}
		}
	}
	if out.State == StateAttached && !e.Committed {
		out.State, out.Detail = StateUncommitted, cmp.Or(out.Detail, "the origin does not answer; the volume works, and its name is registered when the origin is back")
	}
	return out
}

func (s Spec) withDefaults() (Spec, error) {
	switch s.Transport {
	case "", transportAuto, transportNBD, transportUBLK:
		s.Transport = cmp.Or(s.Transport, transportAuto)
	default:
		return s, fmt.Errorf("transport %.20q: %w: want auto, ublk or nbd", s.Transport, content.ErrInvalid)
	}
	if s.Durability != "" && s.Durability != durabilityLocal {
		return s, fmt.Errorf("durability %.20q: %w: this version knows local", s.Durability, errors.ErrUnsupported)
	}
	if s.Takeover {
		return s, fmt.Errorf("takeover: %w in this version: detach the volume on the node that holds it", errors.ErrUnsupported)
	}
	if s.Size < 0 || s.Size > content.SizeMax || s.Size%content.SectorSize != 0 {
		return s, fmt.Errorf("size %d: %w: want a multiple of %d up to %d", s.Size, content.ErrInvalid, content.SectorSize, int64(content.SizeMax))
	}
	s.Durability = durabilityLocal
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
	v.change.Lock()
	defer v.change.Unlock()
	e, here := v.devs.get(name)
	d := v.device(name)
	switch {
	case !here && spec.Size == 0 && spec.From == (content.Ref{}):
		err = fmt.Errorf("%w on this node; a new one needs a size, or something to begin from", content.ErrNotFound)
	case !here:
		created = true
		err = v.create(ctx, name, spec)
	default:
		err = e.agrees(spec)
		switch served := d != nil && d.err == nil; {
		case err != nil:
		case !served:
			created = true
			err = v.reattach(ctx, e, spec)
		case !v.doors.serves(d, spec.Transport):
			err = fmt.Errorf("%w: it is not served over %s; detach it first", content.ErrConflict, spec.Transport)
		case spec.ReadOnly && !d.vol.Geometry().ReadOnly:
			err = fmt.Errorf("%w: it is attached for writing; detach it first", content.ErrConflict)
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
		return fmt.Errorf("%w: it was created from %q, not from %q; choose another name, or remove it first", content.ErrConflict, e.From, s.From)
	case s.Size != 0 && s.Size < e.Size:
		return fmt.Errorf("%w: it has %d bytes, and a volume does not shrink to %d", content.ErrConflict, e.Size, s.Size)
	case s.Size > e.Size:
		return fmt.Errorf("%w: it has %d bytes, not %d", content.ErrConflict, e.Size, s.Size)
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
	if err := v.devs.put(e); err != nil {
		return err
	}
	e.ReadOnly = e.ReadOnly || spec.ReadOnly
	return v.attach(ctx, e)
}

// attach opens a volume and serves it. A failure is kept for List to show, and for
// serveLater.
func (v *Volumes) attach(ctx context.Context, e entry) error {
	d, before := &device{}, v.device(e.Name)
	d.err = v.openDevice(ctx, e, d)
	if d.err == nil {
		if d.err = v.openDisk(ctx, e, d); d.err != nil {
			d.err, d.vol, d.disk = errors.Join(d.err, d.vol.Close()), nil, nil
		}
	}
	if d.err != nil {
		d.after = tryInterval
		if before != nil {
			d.after = min(2*before.after, tryAfterMax)
		}
		d.again = v.cfg.Now().Add(d.after)
		if before == nil || before.err.Error() != d.err.Error() {
			v.cfg.Log.Error("a volume can't be served", "volume", e.Name, "err", d.err)
		}
	}
	v.setDevice(e.Name, d)
	return d.err
}

func (v *Volumes) openDevice(ctx context.Context, e entry, d *device) error {
	cfg := volume.Config{Dir: v.folder(e), ReadOnly: e.ReadOnly, Log: v.cfg.Log}
	if len(e.Head) > 0 {
		head, err := pack.DecodeHead(v.codec, e.Head)
		if err != nil {
			return err
		}
		if d.image, err = v.cfg.Library.Image(ctx, Base{Head: head}); err != nil {
			return err
		}
		cfg.Source, cfg.SourceSize, cfg.ChunkSize = d.image, head.Root.Size, head.Root.ChunkSize
	}
	var err error
	d.vol, err = volume.Open(cfg)
	return err
}

// Detach stops serving a volume; its data stays on this node. One that is in use is
// content.ErrConflict, unless forced.
func (v *Volumes) Detach(ctx context.Context, name string, force bool) (View, error) {
	v.change.Lock()
	defer v.change.Unlock()
	e, ok := v.devs.get(name)
	if !ok {
		return View{}, fmt.Errorf("volume %q: %w on this node", name, content.ErrNotFound)
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
	case d == nil || d.err != nil:
		e, _ := v.devs.get(name)
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

// Remove deletes a volume and its record; an absent one is success. One that is in
// use is content.ErrConflict, unless forced.
func (v *Volumes) Remove(ctx context.Context, name string, force bool) error {
	if err := content.CheckName(name); err != nil {
		return err
	}
	v.change.Lock()
	defer v.change.Unlock()
	e, ok := v.devs.get(name)
	if !ok {
		return nil
	}
	if err := v.close(ctx, name, force); err != nil {
		return fmt.Errorf("remove volume %q: %w", name, err)
	}
	r, err := v.cfg.Registry.Volume(ctx, name)
	if err == nil {
		err = v.deleteRecord(ctx, e, r)
	}
	switch {
	case errors.Is(err, content.ErrNotFound):
	case errors.Is(err, content.ErrUnavailable) && !e.Committed:
	case err != nil:
		return errors.Join(fmt.Errorf("remove volume %q: %w; it stays, detached", name, err), v.detached(e))
	}
	e.Stage = removing
	if err := v.devs.put(e); err != nil {
		return err
	}
	return v.erase(e)
}

func (v *Volumes) detached(e entry) error {
	e.Attached = false
	return v.devs.put(e)
}

// deleteRecord deletes the record if it is of this volume, not of another that
// has its name.
func (v *Volumes) deleteRecord(ctx context.Context, e entry, r catalog.Record) error {
	body, err := catalog.DecodeVolume(v.codec, r.Body)
	if err != nil {
		return err
	}
	if body.ID != e.ID {
		return nil
	}
	return v.cfg.Registry.DeleteVolume(ctx, r)
}
