package doors

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// leaveTimeout is how long a connection may take to end whose client has.
	leaveTimeout = time.Second
	leavePause   = 10 * time.Millisecond
)

// Entrance is where NBD's clients come in to a volume. The zero Entrance is open, and nobody
// is in. Safe for concurrent use.
type Entrance struct {
	in   sync.WaitGroup
	mu   sync.Mutex    // guards what follows
	n    int           // how many are in
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
	e.in.Add(1)
	e.n++
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.n--
		e.in.Done()
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
	tick := time.NewTicker(leavePause)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	for {
		e.mu.Lock()
		n := e.n
		e.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %d NBD connections have it open; end them, or force it", content.InUse, n)
		}
	}
}

// Wait waits until all have left; nobody may come in any more.
func (e *Entrance) Wait() { e.in.Wait() }
