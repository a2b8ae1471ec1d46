// Package operations runs long work of a node in the background: each piece has an
// identifier, shows its progress, and can be cancelled. It does not know what the work is.
package operations

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// runningMax bounds the operations that run at once: each holds buffers
	// of some tens of MiB.
	runningMax = 16
	// keptMax is how many ended operations stay readable.
	keptMax = 256
)

// State is what became of an operation.
type State string

// The states of an operation.
const (
	Running   State = "running"
	Done      State = "done"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// View is a copy of an operation's state.
type View struct {
	ID      string           `json:"id" doc:"those of later operations are greater"`
	Kind    string           `json:"kind"`
	Target  string           `json:"target"`
	State   State            `json:"state" enum:"running,done,failed,cancelled"`
	Unit    string           `json:"unit,omitempty" doc:"what done and total count; bytes when absent"`
	Done    int64            `json:"done" doc:"of the unit"`
	Total   int64            `json:"total" doc:"of the unit; 0 while unknown"`
	Bytes   map[string]int64 `json:"bytes" doc:"what was moved, by source or sink"`
	Paused  bool             `json:"paused,omitempty" doc:"somebody has paused it: a start of the node, too, has it go on"`
	Note    string           `json:"note,omitempty"`
	Error   string           `json:"error,omitempty"`
	Nodes   map[string]Node  `json:"nodes,omitempty" doc:"how far each node is, of what several do"`
	ETA     float64          `json:"eta_seconds" doc:"the time left by the mean rate so far; 0 while unknown"`
	Started time.Time        `json:"started"`
	Ended   time.Time        `json:"ended,omitzero"`
	Took    float64          `json:"took_seconds,omitempty" doc:"by no clock that can be set"`
	// Result may be long: it is kept of the last operation of a kind, and shown of one that is asked for.
	Result json.RawMessage `json:"result,omitempty" doc:"what it has found out, by its kind; in neither lists nor events, and kept of the last of a kind and target alone"`

	// Cause is why it has failed.
	Cause error `json:"-"`
	// Revision counts the changes of the view.
	Revision int `json:"-"`
}

// Node is how far one of several nodes is.
type Node struct {
	State State            `json:"state" enum:"running,done,failed,cancelled"`
	Done  int64            `json:"done" doc:"bytes"`
	Total int64            `json:"total" doc:"bytes; 0 while unknown"`
	Bytes map[string]int64 `json:"bytes,omitempty" doc:"what was moved, by source"`
	Error string           `json:"error,omitempty"`
}

// eta estimates the time left, by the mean rate so far; 0 is unknown.
func (v View) eta(now time.Time) time.Duration {
	if v.State != Running || v.Done <= 0 || v.Total <= v.Done {
		return 0
	}
	return time.Duration(float64(now.Sub(v.Started)) * float64(v.Total-v.Done) / float64(v.Done))
}

// Operations is the long work of a node. Safe for concurrent use.
type Operations struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex // guards all below
	all     map[string]*Operation
	last    int64 // the number that is the latest operation's ID
	closed  bool
	running sync.WaitGroup
}

// Operation is one piece of long work, as the work itself sees it.
type Operation struct {
	owner  *Operations
	cancel context.CancelCauseFunc
	queued bool
	done   chan struct{}

	// Guarded by owner.mu.
	view   View
	passes bool          // the work asks whether it may go on
	goOn   chan struct{} // closed once it may; nil while it is not paused
}

// New returns an empty set.
func New(log *slog.Logger, now func() time.Time) *Operations {
	return &Operations{log: log, now: now, all: map[string]*Operation{}}
}

// ErrCancelled is the cause of a context whose operation somebody has cancelled.
var ErrCancelled = fmt.Errorf("%w: somebody has cancelled it", context.Canceled)

// StartQueued is Start for work that others bound, and that holds little: any number of such may run, also of one kind on
// one target.
func (o *Operations) StartQueued(kind, target string, work func(context.Context, *Operation) error) (View, error) {
	return o.start(true, kind, target, work)
}

// Start runs work on a context of its own and returns at once. A second
// operation of the same kind on the same target is ErrConflict while the first
// one runs; too many at once are ErrUnavailable.
func (o *Operations) Start(kind, target string, work func(context.Context, *Operation) error) (View, error) {
	return o.start(false, kind, target, work)
}

func (o *Operations) start(queued bool, kind, target string, work func(context.Context, *Operation) error) (View, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	running := 0
	for _, op := range o.all {
		if op.view.State != Running {
			continue
		}
		if !op.queued {
			running++
		}
		if !queued && op.view.Kind == kind && op.view.Target == target {
			return View{}, fmt.Errorf("%s %s: %w: operation %s is at it already; wait for it or cancel it", kind, target, content.Running, op.view.ID)
		}
	}
	switch {
	case o.closed:
		return View{}, fmt.Errorf("%s %s: %w: the node is stopping", kind, target, content.ErrClosed)
	case running >= runningMax && !queued:
		return View{}, fmt.Errorf("%s %s: %w: %d operations run already; try again when one has ended", kind, target, content.ErrUnavailable, running)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	started := o.now()
	o.last = max(o.last+1, started.UnixMilli()<<20|rand.Int64N(1<<20))
	op := &Operation{owner: o, cancel: cancel, queued: queued, done: make(chan struct{}), view: View{
		ID: fmt.Sprintf("%016x", o.last), Kind: kind, Target: target, State: Running, Bytes: map[string]int64{}, Started: started, Revision: 1,
	}}
	o.all[op.view.ID] = op
	o.forget()
	o.running.Go(func() { op.run(ctx, work) })
	return op.copy(), nil
}

func (op *Operation) run(ctx context.Context, work func(context.Context, *Operation) error) {
	defer close(op.done)
	err := work(ctx, op)
	cancelled := ctx.Err() != nil
	op.cancel(nil)
	o := op.owner
	o.mu.Lock()
	defer o.mu.Unlock()
	op.view.Ended, op.view.Paused = o.now(), false
	op.view.Took = max(0, op.view.Ended.Sub(op.view.Started).Seconds())
	op.view.Revision++
	if op.view.Cause = err; err != nil {
		op.view.Error = content.Line(err)
	}
	switch {
	case err == nil:
		op.view.State = Done
	case cancelled && errors.Is(err, context.Canceled):
		op.view.State = Cancelled
	default:
		op.view.State = Failed
	}
	for _, other := range o.all {
		if other != op && other.view.State != Running && other.view.Kind == op.view.Kind && other.view.Target == op.view.Target {
			other.view.Result = nil
		}
	}
	o.log.Info("operation ended", "kind", op.view.Kind, "target", op.view.Target, "state", op.view.State, "err", err, "seconds", op.view.Took)
}

// forget drops the oldest ended operations above the limit. Called with mu.
func (o *Operations) forget() {
	var ended []*Operation
	for _, op := range o.all {
		if op.view.State != Running {
			ended = append(ended, op)
		}
	}
	if len(ended) <= keptMax {
		return
	}
	slices.SortFunc(ended, func(a, b *Operation) int { return a.view.Ended.Compare(b.view.Ended) })
	for _, op := range ended[:len(ended)-keptMax] {
		delete(o.all, op.view.ID)
	}
}

// copy is called with mu.
func (op *Operation) copy() View {
	v := op.view
	v.Bytes = maps.Clone(op.view.Bytes)
	v.ETA = v.eta(op.owner.now()).Seconds()
	return v
}

// Update changes the progress that others see.
func (op *Operation) Update(change func(*View)) {
	op.owner.mu.Lock()
	defer op.owner.mu.Unlock()
	change(&op.view)
	op.view.Revision++
}

// Pass returns once the work may go on, which calls it between its parts: while somebody has paused it, it waits. Ctx ends that.
func (op *Operation) Pass(ctx context.Context) error {
	op.owner.mu.Lock()
	op.passes = true
	goOn := op.goOn
	op.owner.mu.Unlock()
	if goOn != nil {
		select {
		case <-goOn:
		case <-op.done: // others have this work done
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// Pause has the work of an operation wait, or go on again. One that is so already, or has ended, stays as it is; one that is at
// nothing that can wait is ErrConflict.
func (o *Operations) Pause(id string, pause bool) (View, error) {
	op, _, err := o.find(id)
	if err != nil {
		return View{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case op.view.State != Running || op.view.Paused == pause:
		return op.copy(), nil
	case pause && !op.passes:
		return op.copy(), fmt.Errorf("pause operation %s: %w: it is at nothing that can wait now; try again while it brings data in, or puts them away", id, content.ErrConflict)
	case pause:
		op.goOn = make(chan struct{})
	default:
		close(op.goOn)
		op.goOn = nil
	}
	op.view.Paused = pause
	op.view.Revision++
	return op.copy(), nil
}

// Report gives an operation its result, which JSON can say.
func (op *Operation) Report(result any) error {
	b, err := json.Marshal(map[string]any{op.view.Kind: result}) // which never changes
	op.Update(func(v *View) { v.Result = b })
	return err
}

// Brief is the view without what is long.
func (v View) Brief() View {
	v.Result = nil
	return v
}

// List returns all operations on record, newest first, without their results.
func (o *Operations) List() []View {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]View, 0, len(o.all))
	for _, op := range o.all {
		out = append(out, op.copy().Brief())
	}
	slices.SortFunc(out, func(a, b View) int { return cmp.Compare(b.ID, a.ID) })
	return out
}

func (o *Operations) find(id string) (*Operation, View, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if op := o.all[id]; op != nil {
		return op, op.copy(), nil
	}
	return nil, View{}, fmt.Errorf("operation %.40q: %w; the last %d are kept", id, content.ErrNotFound, keptMax)
}

// Get returns one operation.
func (o *Operations) Get(id string) (View, error) {
	_, v, err := o.find(id)
	return v, err
}

// Wait returns the operation once it has ended.
func (o *Operations) Wait(ctx context.Context, id string) (View, error) {
	op, v, err := o.find(id)
	if err != nil {
		return v, err
	}
	select {
	case <-op.done:
		return o.Get(id)
	case <-ctx.Done():
		return View{}, ctx.Err()
	}
}

// Cancel asks a running operation to stop, and returns it as it is then: ended, if it
// does so within ctx. One that has ended is left as it is.
func (o *Operations) Cancel(ctx context.Context, id string) (View, error) {
	op, v, err := o.find(id)
	if err != nil {
		return v, err
	}
	op.cancel(ErrCancelled)
	if v, err = o.Wait(ctx, id); err != nil {
		return o.Get(id)
	}
	return v, nil
}

// Close cancels what runs, takes no more, and returns when all have ended or ctx
// is done.
func (o *Operations) Close(ctx context.Context) error {
	o.mu.Lock()
	o.closed = true
	for _, op := range o.all {
		op.cancel(content.ErrClosed)
	}
	o.mu.Unlock()
	ended := make(chan struct{})
	go func() { o.running.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("operations still running: %w", ctx.Err())
	}
}
