// Package instance is the hub of a node: it provisions workloads whose state comes from the mesh and goes back to it. What
// becomes of an instance is for package state to say; here each step is logged before it is done, and is done again after a
// crash. One goroutine drives an instance, and alone does its steps.
package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Config is what a Hub works with.
type Config struct {
	// Dir has a folder for each instance.
	Dir string
	// First and Last are the ports that instances are given.
	First, Last int
	// Provisions and Hydrations are how many steps of each kind are done at once; with 0 each is done as it comes, and
	// who asks waits for it.
	Provisions, Hydrations int
	Limits                 Limits
	// Cgroup is a folder of control groups (version 2) that each instance has one in; "" for none.
	Cgroup string
	// Self is this node, and Farm its farm; Who says how people call another.
	Self trust.PublicKey
	Farm string
	Who  func(trust.PublicKey) string
	// Registry has the records of instances.
	Registry Registry
	// Library writes trees into folders, and stores what is in folders.
	Library Library
	// Volumes are the disks of machines; Emulator is how one runs, as in qemu's -accel.
	Volumes  *volumes.Volumes
	Emulator string
	// Lower is the command that calls Show with what is added: the name and the folder of an instance.
	Lower      []string
	Operations *operations.Operations
	Codec      *content.Codec
	Now        func() time.Time
	Log        *slog.Logger
}

// Registry reads and writes records of instances.
type Registry interface {
	// Instance returns the record of a name, as the origin or several members have it now; content.ErrNotFound where
	// there is none, with a deleted one if there was.
	Instance(ctx context.Context, name string) (catalog.Record, error)
	Instances(ctx context.Context) []catalog.Record
	// Commit writes a record in place of base, nil where there is none, for a farm or the whole mesh. A record that another
	// has replaced is content.ErrConflict.
	Commit(ctx context.Context, name string, base *catalog.Record, farm string, body []byte) (catalog.Record, error)
	Delete(ctx context.Context, base catalog.Record) error
}

// Library is package images, as far as a Hub needs it.
type Library interface {
	TreeRoot(ctx context.Context, name string) (fetch.Root, error)
	Harvest(ctx context.Context, op images.Updater, root fetch.Root, dir string) (said []string, err error)
	Stow(ctx context.Context, op images.Updater, what images.ToStow) (catalog.Image, images.Stowed, error)
	Recall(ctx context.Context, dir string) (images.Stowed, error)
	Lend(root fetch.Root) (*images.Lent, error)
	Target(ctx context.Context, url, dir string) (*images.Target, error)
}

// Hub has the instances of a node. Use: New, Run. Safe for concurrent use.
type Hub struct {
	cfg        Config
	provisions pool
	hydrations pool
	recalls    pool
	ports      sync.Mutex // held while one is given
	admitting  sync.Mutex // held while another instance is let in

	started chan struct{}    // closed by Run
	broken  map[string]error // by folder: what can't be read

	mu       sync.Mutex // guards what follows; nobody waits for anything who holds it
	all      map[string]*hosted
	stopping bool
	ctx      context.Context // of the drivers, and what they have done beside; nil until Run
	drivers  sync.WaitGroup
}

// New reads which instances there are; none is touched before Run.
func New(cfg Config) (*Hub, error) {
	h := &Hub{
		cfg: cfg, provisions: newPool(cfg.Provisions), hydrations: newPool(cfg.Hydrations), recalls: newPool(1),
		all: map[string]*hosted{}, broken: map[string]error{}, started: make(chan struct{}),
	}
	folders, err := os.ReadDir(cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	for _, f := range folders {
		dir := filepath.Join(cfg.Dir, f.Name())
		e, err := load(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it was being made, or removed
			err = discard(dir)
		case err == nil && content.Segment(e.Name) != f.Name():
			err = fmt.Errorf("%s is of an instance %q: %w", dir, e.Name, content.ErrCorrupt)
		case err == nil:
			h.all[e.Name] = newHosted(h, e)
		}
		if err != nil {
			h.broken[f.Name()] = fmt.Errorf("%w; what it has is kept: move the folder away, or mend it, and start the node again", err)
			cfg.Log.Error("an instance is left alone, and what it has is kept", "folder", dir, "err", err)
		}
	}
	return h, err
}

// Run drives the instances until ctx ends; their workloads go on. A nil Hub has none.
func (h *Hub) Run(ctx context.Context) error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	h.ctx = ctx
	for _, i := range h.all {
		h.drive(i)
	}
	h.mu.Unlock()
	close(h.started)
	<-ctx.Done()
	h.mu.Lock()
	h.stopping = true
	h.mu.Unlock()
	h.drivers.Wait()
	return nil
}

// drive begins to drive an instance. Called with mu.
func (h *Hub) drive(i *hosted) {
	ctx := h.ctx
	h.drivers.Go(func() { i.run(ctx) })
}

// beside has something done beside the steps of a driver, who calls it, until the hub's ctx ends.
func (h *Hub) beside(do func(context.Context)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ctx := h.ctx
	h.drivers.Go(func() { do(ctx) })
}

// dir is the folder of an instance.
func (h *Hub) dir(name string) string { return filepath.Join(h.cfg.Dir, content.Segment(name)) }

// get returns an instance that is here; nil where it is not.
func (h *Hub) get(name string) *hosted {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[name]
}

// here is get; ErrNotFound where it is not.
func (h *Hub) here(name string) (*hosted, error) {
	if i := h.get(name); i != nil {
		return i, nil
	}
	return nil, fmt.Errorf("instance %q: %w", name, errElsewhere)
}

// drop forgets an instance that is here no more.
func (h *Hub) drop(i *hosted) (err error) {
	for _, path := range []string{i.path(entryFile), i.dir} {
		if failed := os.Remove(path); !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, i.name)
	return err
}

// snapshot is those that are here now, in no order.
func (h *Hub) snapshot() []*hosted {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.all))
}

// List returns the instances of this node, by name.
func (h *Hub) List() []terms.View {
	out := []terms.View{}
	for _, i := range h.snapshot() {
		out = append(out, i.view())
	}
	slices.SortFunc(out, byName)
	return out
}

func byName(a, b terms.View) int { return cmp.Compare(a.Name, b.Name) }

// Everywhere returns the mesh's instances, by name: this node's as they are, others' as their records say.
func (h *Hub) Everywhere(ctx context.Context) []terms.View {
	out := h.List()
	here := len(out)
	for _, r := range h.cfg.Registry.Instances(ctx) {
		if _, ok := slices.BinarySearchFunc(out[:here], terms.View{Name: r.Name}, byName); !ok {
			out = append(out, h.recorded(r))
		}
	}
	slices.SortFunc(out, byName)
	return out
}

// Get returns an instance: of this node, or as its record says.
func (h *Hub) Get(ctx context.Context, name string) (terms.View, error) {
	if err := content.CheckName(name); err != nil {
		return terms.View{}, err
	}
	if i := h.get(name); i != nil {
		return i.view(), nil
	}
	r, err := h.cfg.Registry.Instance(ctx, name)
	if err != nil {
		return terms.View{}, err
	}
	return h.recorded(r), nil
}

// recorded is an instance that is not here.
func (h *Hub) recorded(r catalog.Record) terms.View {
	v := terms.View{Name: r.Name, State: state.Unprovisioned, Since: r.SignedAt, Farm: r.Farm}
	body, err := catalog.DecodeInstance(h.cfg.Codec, r.Body)
	if err == nil {
		v.Spec, err = terms.Decode(body.Spec)
	}
	if err != nil {
		v.Detail = content.Line(err)
		return v
	}
	v.Epoch, v.Saved, v.Root = body.Epoch, body.SavedAt(), rootOf(h.cfg.Codec, body)
	if body.State == catalog.Attached {
		v.State, v.Node = state.Provisioned, h.cfg.Who(body.Holder)
	}
	return v
}

// Do has something done about an instance: the request counts for Provision alone. It returns what it is at once, and the
// operation that is at it; none where it is so already. What was asked for before and is under way is joined.
func (h *Hub) Do(ctx context.Context, name string, e state.Event, req terms.Request) (v terms.View, op operations.View, err error) {
	if err := content.CheckName(name); err != nil {
		return v, op, err
	}
	var i *hosted
	select {
	case <-h.started:
	case <-ctx.Done():
		return v, op, fmt.Errorf("%s instance %q: %w: the node is starting", e, name, content.ErrUnavailable)
	}
	for again := true; again; again = errors.Is(err, errGone) {
		if i, err = h.asked(ctx, name, e, &req); i != nil && err == nil {
			op, err = i.ask(e, req)
		}
	}
	if err != nil {
		return v, op, fmt.Errorf("%s instance %q: %w", e, name, err)
	}
	if i == nil {
		return terms.View{Name: name, State: state.Unprovisioned, Since: h.cfg.Now()}, op, nil
	}
	if op.ID != "" && h.cfg.Provisions == 0 {
		if op, err = h.cfg.Operations.Wait(ctx, op.ID); err == nil && op.State != operations.Done {
			err = fmt.Errorf("%s instance %q: %w", e, name, op.Cause)
		}
	}
	if v = i.view(); op.State == operations.Running { // it may have ended by now, and has to tell how
		v.Operation = op.ID
	}
	return v, op, err
}

// asked returns the instance that something is asked of; nil where nothing is to be done.
func (h *Hub) asked(ctx context.Context, name string, e state.Event, req *terms.Request) (*hosted, error) {
	if e == state.Provision && (!req.IsZero() || h.get(name) == nil) {
		if err := h.complete(ctx, name, req); err != nil {
			return nil, err
		}
	}
	gone := false
	if h.get(name) == nil && e == state.Obliterate { // nothing of it is here, and the record goes all the same
		r, err := h.cfg.Registry.Instance(ctx, name)
		if gone = errors.Is(err, content.ErrNotFound); err == nil {
			err = h.mayObliterate(r)
		}
		if err != nil && !gone {
			return nil, err
		}
	}
	h.admitting.Lock()
	defer h.admitting.Unlock()
	i := h.get(name)
	switch {
	case i != nil:
		return i, nil
	case h.broken[content.Segment(name)] != nil:
		return nil, h.broken[content.Segment(name)]
	case e == state.Deprovision, gone:
		return nil, nil
	case e != state.Provision && e != state.Obliterate:
		return nil, errElsewhere
	case e == state.Provision && req.IsZero(): // it was here just now
		return nil, errGone
	case e == state.Provision:
		if err := h.admit(req.Spec); err != nil {
			return nil, err
		}
	}
	return h.host(entry{Name: name, Spec: req.Spec, Since: h.cfg.Now()})
}

// host has another instance here.
func (h *Hub) host(e entry) (*hosted, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return nil, fmt.Errorf("%w: the node is stopping", content.ErrUnavailable)
	}
	i := newHosted(h, e)
	h.all[e.Name] = i
	h.drive(i)
	return i, nil
}

// complete checks a request to provision; what it does not say, the record of an instance does that was here before, or
// elsewhere.
func (h *Hub) complete(ctx context.Context, name string, req *terms.Request) (err error) {
	unsaid := req.IsZero()
	if !unsaid {
		if req.Spec, err = req.Spec.WithDefaults(); err != nil || h.get(name) != nil {
			return err
		}
	}
	r, err := h.cfg.Registry.Instance(ctx, name)
	switch {
	case errors.Is(err, content.ErrNotFound) && !unsaid:
		return nil
	case errors.Is(err, content.ErrNotFound):
		return fmt.Errorf("%w: there is none that was put away: say how it is to be run", err)
	case err != nil:
		return fmt.Errorf("look whether another node has it: %w", err)
	}
	body, err := catalog.DecodeInstance(h.cfg.Codec, r.Body)
	if err == nil && unsaid {
		req.Spec, err = terms.Decode(body.Spec)
	}
	if err == nil && unsaid { // another node may have written it
		req.Spec, err = req.Spec.WithDefaults()
	}
	if err != nil {
		return err
	}
	return h.mayClaim(r, body, *req)
}

// Port returns the port of an instance that runs.
func (h *Hub) Port(name string) (int, error) {
	i, err := h.here(name)
	if err != nil {
		return 0, err
	}
	switch e, _ := i.now(); {
	case e.State != state.Provisioned:
		return 0, fmt.Errorf("instance %q: %w: it is %s", name, content.ErrUnavailable, e.State)
	case e.Port == 0:
		return 0, fmt.Errorf("instance %q: %w: it listens nowhere", name, content.ErrNotFound)
	default:
		return e.Port, nil
	}
}
