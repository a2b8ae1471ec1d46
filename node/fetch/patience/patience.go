// Package patience holds what reads that wait for a source share.
package patience

import (
	"context"
	"fmt"
	"sync"
	"time"

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
	// Blocked is how long any read has waited so far for what was not on this node.
	Blocked time.Duration
}

// Waits are those of one image. Safe for concurrent use.
type Waits struct {
	mu  sync.Mutex // guards what follows
	now Waiting
	// Reads that wait for what is not here, whether that comes at once or not, since when, and how long others did before.
	reads   int
	since   time.Time
	blocked time.Duration
}

// Now returns them.
func (w *Waits) Now() Waiting {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.now
	if out.Blocked = w.blocked; w.reads > 0 {
		out.Blocked += time.Since(w.since)
	}
	return out
}

// count adds reads to those that wait.
func (w *Waits) count(reads int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.reads
	switch w.reads += reads; {
	case before == 0:
		w.since = time.Now()
	case w.reads == 0:
		w.blocked += time.Since(w.since)
	}
}

// note adds reads, and the reason why they wait.
func (w *Waits) note(reads int, err error) {
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

// Limits say how a read waits.
type Limits struct {
	// Back rings when a source may be back; else the read is tried again after pauses, the
	// n-th being Again(n), and for Most in all.
	Back  *Bell
	Again func(n int) time.Duration
	Most  time.Duration
	// MayCome reports whether what failed so may come right.
	MayCome func(error) bool
	// Ended ends with the node, and its cause is returned.
	Ended context.Context
	// Waits is told of a read that has to wait, and what it returns is called at its end.
	Waits func() (over func())
}

// Try has what a guest waits for tried again until it comes, until the sources have said
// that it is nowhere, or until the guest has waited for as long as it may. When what the
// guest reads from ends, which is ctx, or the node, that is over at once.
func (w *Waits) Try(ctx context.Context, l Limits, try func(context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, l.Most)
	defer cancel()
	w.count(1)
	defer w.count(-1)
	last := error(content.ErrUnavailable)
	for n := 0; ; n++ {
		back := l.Back.Wait()
		err := try(within)
		if err == nil || !l.MayCome(err) && within.Err() == nil {
			return err
		}
		if l.MayCome(err) {
			last = err
		}
		if n == 0 {
			over := l.Waits()
			w.note(1, last)
			defer func() { over(); w.note(-1, nil) }()
		} else {
			w.note(0, last)
		}
		select {
		case <-back:
			n = 0
		case <-time.After(l.Again(n)):
		case <-l.Ended.Done():
			return context.Cause(l.Ended)
		case <-within.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("nothing came within %s, see --io-timeout: %w", l.Most, last)
		}
	}
}

// Few tries something again, so many times at most, after pauses, unless it is over.
func Few(ctx context.Context, tries int, again func(n int) time.Duration, over func(error) bool, try func() error) error {
	for n := 0; ; n++ {
		err := try()
		if err == nil || n == tries || over(err) {
			return err
		}
		select {
		case <-time.After(again(n)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
