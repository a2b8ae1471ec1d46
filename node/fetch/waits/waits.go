// Package waits tells of the reads that wait for a source, and ends their waiting.
package waits

import (
	"sync"
	"time"
)

// Back is what those wait for who wait for a source. The zero value is ready; safe for
// concurrent use.
type Back struct {
	mu sync.Mutex    // guards ch
	ch chan struct{} // closed when one is back; nil while nobody waits
}

// Wait returns what is closed by the next Tell.
func (b *Back) Wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// Tell has those who wait go on: a source is back.
func (b *Back) Tell() {
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

// Reads are those of one image that wait. The zero value is ready; safe for concurrent use.
type Reads struct {
	mu  sync.Mutex // guards now
	now Waiting
}

// Note has so many more reads wait, or fewer, and why.
func (r *Reads) Note(reads int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now.Reads == 0 {
		r.now.Since = time.Now()
	}
	if r.now.Reads += reads; r.now.Reads == 0 {
		r.now = Waiting{}
		return
	}
	r.now.Why = err
}

// Now returns what is waited for, but for the Timeout.
func (r *Reads) Now() Waiting {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}
