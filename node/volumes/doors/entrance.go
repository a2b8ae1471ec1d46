package doors

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// leaveTimeout is how long a connection may take to end whose client has.
const leaveTimeout = time.Second

// Entrance is where NBD's clients come in to a volume. The zero Entrance is open, and nobody
// is in. Safe for concurrent use.
type Entrance struct {
	mu   sync.Mutex    // guards what follows
	n    int           // how many are in
	left chan struct{} // closed when the last of them leaves; nil while nobody is in
	shut chan struct{} // closed when it is opened again; nil while it is open
}

// Enter lets a client in until leave is called, at most once. While the entrance is shut leave
// is nil, and opened is closed when that is over.
func (e *Entrance) Enter() (leave func(), opened <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shut != nil {
		return nil, e.shut
	}
	if e.n++; e.n == 1 {
		e.left = make(chan struct{})
	}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.n--; e.n == 0 {
			close(e.left)
			e.left = nil
		}
	}, nil
}

// Shut lets nobody in until open is called. Those who are in may be a moment about leaving:
// if any stays it is content.ErrConflict, and open as before, unless it is forced.
func (e *Entrance) Shut(ctx context.Context, force bool) (open func(), err error) {
	e.mu.Lock()
	shut := make(chan struct{})
	if e.shut != nil { // who has shut it opens it
		e.mu.Unlock()
		return func() {}, nil
	}
	e.shut = shut
	e.mu.Unlock()
	open = func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.shut = nil
		close(shut)
	}
	if !force {
		err = e.empty(ctx)
	}
	if err != nil {
		open()
	}
	return open, err
}

// empty waits a moment until nobody is in.
func (e *Entrance) empty(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if e.wait(ctx) {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return fmt.Errorf("%w: %d NBD connections have it open; end them, or force it", content.InUse, e.n)
}

// wait reports whether all have left before ctx ended.
func (e *Entrance) wait(ctx context.Context) bool {
	e.mu.Lock()
	left := e.left
	e.mu.Unlock()
	if left == nil {
		return true
	}
	select {
	case <-left:
		return true
	case <-ctx.Done():
		return false
	}
}

// Wait waits until all have left; nobody may come in any more.
func (e *Entrance) Wait() { e.wait(context.Background()) }
