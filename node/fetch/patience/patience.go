// Package patience holds what reads that wait for a source share.
package patience

import (
	"sync"
	"time"
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
