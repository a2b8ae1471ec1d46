package instance

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

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
	if err := errors.Join(strip(i.dir), i.ungroup()); err != nil {
		return err
	}
	return i.change(func(e *entry) error { e.Port, e.Process = 0, nil; return nil })
}

// adopt finds the process again that an earlier start of the node has begun, unless it is known; ErrNotFound where none runs.
func (i *hosted) adopt() error {
	e, _ := i.now()
	switch {
	case i.proc != nil:
		return nil
	case e.Process == nil:
		return content.ErrNotFound
	}
	p, err := process.Adopt(*e.Process, i.cgroup())
	if err == nil {
		i.proc, i.adopted = p, true
	} else if !errors.Is(err, content.ErrNotFound) {
		err = fmt.Errorf("whether process %d runs can't be told: %w", e.Process.PID, err)
	}
	return err
}

// letGo closes the process: it has ended, or goes on without this node.
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

// path is that of a name in the instance's folder, and data the one of what the workload has.
func (i *hosted) path(name string) string { return filepath.Join(i.dir, name) }
func (i *hosted) data() string            { return i.path(dataDir) }
