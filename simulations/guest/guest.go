// Package guest does with disks and file systems what guests do, beside what they should
// hold then: nothing that was acknowledged is lost, and nothing that was replaced comes back.
package guest

import (
	"context"
	"fmt"
)

// Work is something that is done again and again beside a test.
type Work struct {
	name  string
	steps chan struct{}
	stop  context.CancelFunc
	ended chan struct{}
	err   error // once ended
}

// Begin repeats a step until it fails or is told to stop. The caller stops it.
func Begin(name string, step func() error) *Work {
	ctx, stop := context.WithCancel(context.Background())
	w := &Work{name: name, steps: make(chan struct{}), stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for ctx.Err() == nil && w.err == nil {
			w.err = step()
			select {
			case w.steps <- struct{}{}:
			default: // nobody waits for it
			}
		}
	}()
	return w
}

// Progress returns when so many more steps were done, or fails when there will be none.
func (w *Work) Progress(ctx context.Context, steps int) error {
	for range steps {
		select {
		case <-w.steps:
		case <-w.ended:
			return fmt.Errorf("%s has ended: %w", w.name, w.err)
		case <-ctx.Done():
			return fmt.Errorf("%s does not go on: %w", w.name, ctx.Err())
		}
	}
	return nil
}

// Stop lets the step that is under way end, and returns what has failed.
func (w *Work) Stop() error {
	w.stop()
	<-w.ended
	if w.err != nil {
		return fmt.Errorf("%s: %w", w.name, w.err)
	}
	return nil
}
