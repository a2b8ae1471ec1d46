package instance

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/instance/process"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// lookEvery is how often it is looked whether a workload is used, and how much it has said.
	lookEvery = 5 * time.Second
	// ownedEvery is how often it is looked whether the record still names this node: 100 instances ask twice a second.
	ownedEvery = 50 * time.Second
	// steadyAfter is how long a workload has to run until earlier crashes count no more.
	steadyAfter = 10 * time.Minute
	// recallAfter is how long files are left alone that were just written: a stamp tells later changes from it on.
	recallAfter = 3 * time.Second
)

// rest waits until something is to be done about an instance that is in a state to stay in.
func (i *hosted) rest(ctx context.Context, e entry, changed <-chan struct{}) {
	switch e.State {
	case state.Provisioned:
		i.watch(ctx, e, changed)
	case state.Crashed:
		if i.wait(ctx, pause(e.Crashes)-i.hub.cfg.Now().Sub(e.Since), changed) {
			i.happens(state.Due, nil)
		}
	case state.Hibernated:
		if i.wait(ctx, ownedEvery, changed) && i.taken(ctx) {
			return
		}
		if idle := e.Spec.Idle.Duration(); idle > 0 && i.hub.cfg.Now().Sub(e.Since) > idle {
			i.happens(state.Idle, nil)
		}
	default:
		i.wait(ctx, ownedEvery, changed)
	}
}

// happens is on for what nobody waits for, and what is found out once more where it can't be logged.
func (i *hosted) happens(ev state.Event, why error) {
	if err := i.on(ev, why); err != nil {
		i.hub.cfg.Log.Error("what has happened to an instance can't be logged", "name", i.name, "event", ev, "err", err)
		i.wait(i.hub.ctx, logAgain, nil)
	}
}

// watch watches a workload that runs.
func (i *hosted) watch(ctx context.Context, e entry, changed <-chan struct{}) {
	switch err := i.adopt(); {
	case errors.Is(err, content.ErrNotFound):
		i.crashed(nil)
		return
	case err != nil: // it may run: nothing is done about it
		i.wait(ctx, lookEvery, nil)
		return
	}
	ctx, stop := context.WithCancel(ctx)
	looking, over := context.WithCancel(ctx) // a look does not keep what happens meanwhile waiting
	ended, beside := make(chan error, 1), sync.WaitGroup{}
	defer beside.Wait()
	defer stop()
	proc := i.proc
	beside.Go(func() {
		defer over()
		ended <- proc.Wait(ctx)
	})
	beside.Go(func() {
		defer over()
		select {
		case <-changed:
		case <-looking.Done():
		}
	})
	tick, owned, recall := time.NewTicker(lookEvery), time.NewTicker(ownedEvery), time.After(recallAfter)
	defer tick.Stop()
	defer owned.Stop()
	used := i.hub.cfg.Now()
	for {
		select {
		case <-changed:
			return
		case <-ctx.Done():
			return
		case err := <-ended:
			if ctx.Err() == nil {
				i.crashed(err)
			}
			return
		case <-recall:
			beside.Go(func() { _ = i.hub.recalls.do(ctx, func() error { i.recall(ctx); return nil }) }) // it says itself what fails
		case <-owned.C:
			if i.taken(looking) {
				return
			}
		case <-tick.C:
			used = i.tick(looking, e, used)
		}
	}
}

// tick looks at a workload that runs, and returns when it was used last.
func (i *hosted) tick(ctx context.Context, e entry, used time.Time) time.Time {
	now := i.hub.cfg.Now()
	if err := rotate(i.dir); err != nil {
		i.hub.cfg.Log.Warn("the log of an instance grows", "name", i.name, "err", err)
	}
	if e.Crashes > 0 && now.Sub(e.Since) > steadyAfter {
		i.happens(state.Steady, nil)
	}
	idle := e.Spec.Idle.Duration()
	if idle == 0 {
		return now
	}
	if busy, err := i.isUsed(ctx, e); err != nil || busy {
		return now
	}
	if now.Sub(used) > idle {
		i.happens(state.Idle, nil)
	}
	return used
}

// probeTimeout bounds how long a probe may take.
const probeTimeout = 30 * time.Second

// isUsed reports whether somebody uses the workload.
func (i *hosted) isUsed(ctx context.Context, e entry) (bool, error) {
	if len(e.Spec.Probe) == 0 {
		return isConnected(e.Port)
	}
	cfg, err := i.program(e, e.Spec.Probe)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	status, err := process.Run(ctx, cfg)
	return status == 0, err
}

// crashed notes that a workload has ended by itself.
func (i *hosted) crashed(how error) {
	if how == nil {
		how = errors.New("it has ended")
	}
	i.hub.cfg.Log.Warn("the workload of an instance has ended by itself", "name", i.name, "how", how)
	i.letGo()
	i.happens(state.Exited, how)
}

// taken looks whether the record still names this node; where that can't be told it does.
func (i *hosted) taken(ctx context.Context) bool {
	_, _, err := i.own(ctx)
	if !errors.Is(err, content.ErrFenced) {
		return false
	}
	i.hub.cfg.Log.Error("an instance is another node's by now; what it has here stays", "name", i.name, "err", err)
	i.happens(state.Fenced, err)
	return true
}
