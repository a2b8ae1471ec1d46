// Package patience holds what reads that wait for a source share.
package patience

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

// Bell is what many wait for, as for a source to be back. The zero value is ready; safe
// for concurrent use, and locks nothing.
type Bell struct {
	mu sync.Mutex    // guards ch
	ch chan struct{} // closed when it rings; nil while nobody waits
}

// Wait returns what is closed when the bell rings next.
func (b *Bell) Wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// Ring wakes those that wait.
func (b *Bell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// Waiting says what guests of an image wait for.
type Waiting struct {
	// Reads that every source has failed, for now; Since is when the first of them
	// began, and Why the latest reason.
	Reads int
	Since time.Time
	Why   error
	// Timeout is how long each of them waits.
	Timeout time.Duration
}

// Waits are those of one image. Safe for concurrent use.
type Waits struct {
	mu  sync.Mutex // guards now
	now Waiting
}

// Now returns them.
func (w *Waits) Now() Waiting {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// Note adds reads, and the reason why they wait.
func (w *Waits) Note(reads int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now.Reads == 0 {
		w.now.Since = time.Now()
	}
	if w.now.Reads += reads; w.now.Reads == 0 {
		w.now = Waiting{}
		return
	}
	w.now.Why = err
}

// ErrStopped ends what waits on a node that stops.
var ErrStopped = errors.New("the node is stopping")

// MayCome reports whether what failed so may come right. A climb that was final is
// content.ErrCorrupt or content.ErrNotFound instead.
func MayCome(err error) bool { return errors.Is(err, content.ErrUnavailable) }

// Guest is what a guest's reads wait by.
type Guest struct {
	// Back rings when a source is back, and Stopped is closed when the node stops.
	Back    *Bell
	Stopped <-chan struct{}
	// Timeout is how long a read may wait.
	Timeout time.Duration
	// Waits are those of its image, and Waiting is told of one more that waits, or less.
	Waits   *Waits
	Waiting func(more int)
}

// Try has something tried again until it comes, until the sources have said that it is
// nowhere, or until the guest has waited for as long as it may. When ctx ends, or the node,
// that is over at once.
func (g Guest) Try(ctx context.Context, try func(context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, g.Timeout)
	defer cancel()
	last := error(content.ErrUnavailable)
	for n := 0; ; n++ {
		back := g.Back.Wait()
		err := try(within)
		if err == nil || !MayCome(err) && within.Err() == nil {
			return err
		}
		if MayCome(err) {
			last = err
		}
		if n == 0 {
			g.Waiting(1)
			g.Waits.Note(1, last)
			defer func() { g.Waiting(-1); g.Waits.Note(-1, nil) }()
		} else {
			g.Waits.Note(0, last)
		}
		select {
		case <-back:
			n = 0
		case <-time.After(plan.Again(n)):
		case <-g.Stopped:
			return ErrStopped
		case <-within.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("nothing came within %s, see --io-timeout: %w", g.Timeout, last)
		}
	}
}
