package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/process"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
)

// hosted is an instance that is here. Its driver alone does its steps.
type hosted struct {
	hub     *Hub
	name    string
	dir     string
	proc    *process.Process // of the driver; nil while none is known to run
	adopted bool             // of the driver: an earlier start of the node has begun that

	mu      sync.Mutex // guards what follows
	entry   entry
	changed chan struct{}           // closed at the next change
	gone    bool                    // it was dropped
	running operations.View         // what was begun last; shows no progress
	op      *operations.Operation   // that shows what is done; nil for none
	abort   context.CancelCauseFunc // ends the step that is being done, if it can be given up
	vain    bool                    // what is under way is not wanted any more
	lower   *images.Lent            // what the data began as, if that need not be here; nil until somebody asks
}

// errAborted ends a step that nobody wants any more.
var errAborted = fmt.Errorf("%w: it was cancelled", context.Canceled)

// errGone says that an instance was dropped meanwhile.
var errGone = errors.New("it has just ended")

func newHosted(h *Hub, e entry) *hosted {
	return &hosted{hub: h, name: e.Name, dir: h.dir(e.Name), entry: e, changed: make(chan struct{})}
}

// now returns the entry, and what is closed when there is another.
func (i *hosted) now() (entry, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.entry, i.changed
}

// change has another entry, on disk before anybody sees it.
func (i *hosted) change(step func(*entry) error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.changing(step)
}

// changing is change. Called with mu.
func (i *hosted) changing(step func(*entry) error) error {
	e := i.entry
	if err := step(&e); err != nil {
		return err
	}
	if e.State != i.entry.State {
		e.Since = i.hub.cfg.Now()
	}
	if i.gone {
		return errGone
	}
	if reflect.DeepEqual(e, i.entry) { // who waits, or looks, is not to begin anew
		return nil
	}
	if err := e.save(i.dir); err != nil {
		return fmt.Errorf("log what is done about it: %w", err)
	}
	i.entry, i.vain = e, i.vain && !e.IsStable()
	i.tell()
	return nil
}

// tell wakes who waits for a change. Called with mu.
func (i *hosted) tell() {
	close(i.changed)
	i.changed = make(chan struct{})
}

// on has an event happen.
func (i *hosted) on(ev state.Event, why error) error {
	return i.change(func(e *entry) error { return e.on(ev, why) })
}

// on is what becomes of an entry by an event.
func (e *entry) on(ev state.Event, why error) (err error) {
	if e.Instance, err = e.Instance.On(ev); err == nil && why != nil {
		e.Detail, e.why = content.Line(why), why
	}
	if ev == state.Exited {
		e.Process = nil
	}
	if e.State == state.Provisioned { // the record names the disk by now
		e.Disk = content.VolumeID{}
	}
	return err
}

// ask has done what a caller asks for, and returns the operation that is at it.
func (i *hosted) ask(ev state.Event, req terms.Request) (operations.View, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.gone {
		return operations.View{}, errGone
	}
	before := i.entry
	if ev == state.Provision && before.State != state.Unprovisioned && before.State != "" {
		if err := req.Agrees(before.Spec); err != nil {
			return operations.View{}, err
		}
	}
	err := i.changing(func(e *entry) error {
		if ev == state.Provision && (e.State == state.Unprovisioned || e.State == "") { // with nothing of an earlier life
			*e = entry{Name: e.Name, Spec: e.Spec, Since: e.Since}
			if !req.IsZero() {
				e.Spec = req.Spec
			}
		}
		if e.IsStable() {
			e.Takeover = req.Takeover
		}
		err := e.on(ev, nil)
		if err == nil && before.IsStable() && !e.IsStable() {
			e.Detail, e.why = "", nil
		}
		return err
	})
	if err != nil || i.entry.IsStable() {
		return operations.View{}, err
	}
	if i.entry.Then != "" {
		i.giveUp()
		_, _ = i.hub.cfg.Operations.Pause(i.running.ID, false) // what can't be given up is not to wait, either
	}
	if v, err := i.hub.cfg.Operations.Get(i.running.ID); err == nil && v.State == operations.Running && v.Kind == string(ev) {
		return v, nil
	}
	i.running, err = i.hub.cfg.Operations.StartQueued(string(ev), i.name, func(ctx context.Context, op *operations.Operation) error {
		return i.follow(ctx, ev, op)
	})
	return i.running, err
}

// follow shows in an operation what is done, until nothing is.
func (i *hosted) follow(ctx context.Context, ev state.Event, op *operations.Operation) error {
	i.mu.Lock()
	i.op = op
	i.mu.Unlock()
	for {
		e, changed := i.now()
		if e.IsStable() && (e.State != state.Unprovisioned || i.isGone()) || e.Undoing && e.Tries > 0 { // what can't be taken back yet is tried on
			return reached(ev, e)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), operations.ErrCancelled) {
				i.mu.Lock()
				i.giveUp()
				i.mu.Unlock()
			}
			return context.Cause(ctx)
		}
	}
}

// giveUp ends what is under way, as far as it can be given up. Called with mu.
func (i *hosted) giveUp() {
	if i.vain = true; i.abort != nil {
		i.abort(errAborted)
	}
}

// reached is nil if an instance is what was asked for, else why it is not.
func reached(ev state.Event, e entry) error {
	want := map[state.Event]state.State{
		state.Provision: state.Provisioned, state.Wake: state.Provisioned, state.Hibernate: state.Hibernated, state.Deprovision: state.Unprovisioned, state.Obliterate: state.Unprovisioned,
	}[ev]
	if e.State == want {
		return nil
	}
	return fmt.Errorf("it is %s: %w", e.State, cmp.Or(e.why, errors.New(cmp.Or(e.Detail, "something else was asked for"))))
}

// Update implements images.Updater: it shows in the operation how far a step is.
func (i *hosted) Update(change func(*operations.View)) {
	if op := i.operation(); op != nil {
		op.Update(change)
	}
}

// Pass implements images.Updater: it waits while the operation is paused.
func (i *hosted) Pass(ctx context.Context) error {
	if op := i.operation(); op != nil {
		return op.Pass(ctx)
	}
	return context.Cause(ctx)
}

func (i *hosted) operation() *operations.Operation {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.op
}

// run drives the instance until ctx ends, or nothing of it is here.
func (i *hosted) run(ctx context.Context) {
	defer i.letGo()
	if err := i.adopt(); err != nil && !errors.Is(err, content.ErrNotFound) { // who waits for it sees that it has ended
		i.hub.cfg.Log.Error("an instance may run without this node", "name", i.name, "err", err)
	}
	for ctx.Err() == nil {
		e, changed := i.now()
		switch {
		case !e.IsStable():
			i.proceed(ctx, e, changed)
		case e.State == state.Unprovisioned || e.State == "":
			if i.drop() {
				return
			}
		default:
			i.rest(ctx, e, changed)
		}
	}
}

// drop ends an instance of which nothing is here.
func (i *hosted) drop() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.gone = i.entry.IsStable(); !i.gone {
		return false
	}
	if err := i.hub.drop(i); err != nil {
		i.hub.cfg.Log.Warn("what an instance has left is still here", "name", i.name, "err", err)
	}
	i.tell() // nothing is left
	return true
}

// isGone reports whether it was dropped.
func (i *hosted) isGone() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.gone
}

// proceed does the step that is due, and notes how it has ended.
func (i *hosted) proceed(ctx context.Context, e entry, changed <-chan struct{}) {
	if e.Tries > 0 && !i.wait(ctx, pause(e.Tries), changed) {
		return
	}
	step := e.Left[0]
	err := i.abortable(ctx, step, func(ctx context.Context) error { return i.do(ctx, e, step) })
	if ctx.Err() != nil { // it is done again after the next start
		return
	}
	ev := state.Done
	switch {
	case errors.Is(err, content.ErrFenced):
		ev = state.Fenced
	case err != nil:
		ev = state.Failed
	}
	if err != nil {
		i.hub.cfg.Log.Warn("a step of an instance has failed", "name", i.name, "state", e.State, "step", step, "err", err)
		i.Update(func(v *operations.View) { v.Note = "what went wrong last: " + content.Line(err) })
	}
	failed := i.change(func(now *entry) error {
		if ev == state.Done && (len(now.Left) == 0 || now.Left[0] != step) { // it was taken away meanwhile
			return nil
		}
		return now.on(ev, err)
	})
	if failed != nil { // the disk is full, as a rule: the step is done again
		i.hub.cfg.Log.Error("what an instance has come to can't be logged", "name", i.name, "err", failed)
		i.wait(ctx, logAgain, nil)
	}
}

// logAgain is how long a step waits whose end can't be logged.
const logAgain = 5 * time.Second

// abortable does a step that a caller may give up.
func (i *hosted) abortable(ctx context.Context, step state.Step, do func(context.Context) error) error {
	if step != state.Hydrate && step != state.Await && step != state.Claim && step != state.Compact {
		return do(ctx)
	}
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	i.mu.Lock()
	if i.abort = abort; i.vain && !i.entry.Undoing {
		abort(errAborted)
	}
	i.mu.Unlock()
	err := do(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.abort = nil
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return err
}

// wait returns after a time, or a change; it reports whether ctx goes on and nothing has changed.
func (i *hosted) wait(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-changed:
	case <-ctx.Done():
	}
	return false
}

// pause is how long a step waits that has failed so often.
func pause(tries int) time.Duration {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = time.Second, 5*time.Minute
	d := b.InitialInterval
	for range min(tries, 32) {
		d = b.NextBackOff()
	}
	return d
}

// view describes the instance.
func (i *hosted) view() terms.View {
	e, _ := i.now()
	v := terms.View{Name: e.Name, State: cmp.Or(e.State, state.Unprovisioned), Detail: e.Detail, Spec: e.Spec, Port: e.Port, Epoch: e.Epoch, Crashes: e.Crashes, Saved: e.Saved, Root: e.Root, Since: e.Since, Node: i.hub.cfg.Who(i.hub.cfg.Self), Farm: i.hub.cfg.Farm, Dir: i.data()}
	if e.Process != nil {
		v.PID = e.Process.PID
	}
	if !e.IsStable() {
		v.Step = e.Left[0]
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.running.ID != "" && !e.IsStable() {
		v.Operation = i.running.ID
	}
	return v
}
