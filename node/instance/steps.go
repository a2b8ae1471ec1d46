package instance

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/process"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/origin/content"
)

// do does a step. Whatever it finds done by an earlier try is left as it is.
func (i *hosted) do(ctx context.Context, e entry, step state.Step) error {
	in := map[state.Step]pool{
		state.Hydrate: i.hub.hydrations, state.Dehydrate: i.hub.hydrations,
		state.Start: i.hub.provisions, state.Await: i.hub.provisions, state.Stop: i.hub.provisions, state.Compact: i.hub.provisions,
	}[step]
	return in.do(ctx, func() error {
		switch step {
		case state.Claim:
			return i.claim(ctx)
		case state.Hydrate:
			return i.runtime(e).hydrate(ctx, e)
		case state.Reserve:
			return i.hub.reserve(i)
		case state.Start:
			return i.start(ctx, e)
		case state.Await:
			return i.await(ctx, e)
		case state.Compact:
			return i.compact(ctx, e)
		case state.Stop:
			return i.stop(ctx, e)
		case state.Dehydrate:
			return i.runtime(e).dehydrate(ctx, e)
		case state.Release:
			return i.release(ctx)
		case state.Forget:
			return i.forget(ctx, e)
		case state.Clear:
			return i.clear(ctx, e)
		}
		return fmt.Errorf("step %q: %w", step, errors.ErrUnsupported)
	})
}

// clear removes what is here, and gives its port back.
func (i *hosted) clear(ctx context.Context, e entry) error {
	err := i.runtime(e).remove(ctx, e, false)
	if err == nil { // a workload may have mounted what is not the instance's
		err = images.HasNoMounts(i.dir)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(clear(i.dir), i.ungroup()); err != nil {
		return err
	}
	return i.change(func(e *entry) error { e.Port, e.Process = 0, nil; return nil })
}

// adopt finds the process again that an earlier start of the node has begun, before anything is done.
func (i *hosted) adopt() {
	e, _ := i.now()
	if e.Process == nil {
		return
	}
	p, err := process.Adopt(*e.Process, i.cgroup())
	switch {
	case err == nil:
		i.proc, i.adopted = p, true
	case errors.Is(err, content.ErrNotFound): // it has ended; who waits for it sees that
	default:
		i.hub.cfg.Log.Error("whether a workload runs can't be told", "name", i.name, "pid", e.Process.PID, "err", err)
	}
}

// leave lets go of the process, which goes on.
func (i *hosted) leave() {
	if i.proc != nil {
		_ = i.proc.Close()
	}
}

// letGo closes a process that has ended.
func (i *hosted) letGo() {
	if i.proc != nil {
		_ = i.proc.Close()
		i.proc, i.adopted = nil, false
	}
}

// ended notes that no process is left.
func (i *hosted) ended() error {
	i.letGo()
	return i.change(func(e *entry) error { e.Process = nil; return nil })
}

// data is the folder of what the workload has.
func (i *hosted) data() string { return i.dir + string(os.PathSeparator) + dataDir }
