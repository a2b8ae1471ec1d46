package gate

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/grangemesh/grange/origin/content"
)

// Turn is had by one at a time at the record of a volume. Safe for concurrent use.
type Turn struct {
	busy  chan struct{} // has one while somebody has it
	yield atomic.Pointer[context.CancelFunc]
}

// NewTurn returns one that nobody has.
func NewTurn() *Turn { return &Turn{busy: make(chan struct{}, 1)} }

// Have waits for the caller's turn at the record of a volume, and returns what ends it, and
// the ctx of that: it ends with the caller's, and by Yield.
func (t *Turn) Have(ctx context.Context) (mine context.Context, end func(), err error) {
	select {
	case t.busy <- struct{}{}:
		mine, cancel := context.WithCancel(ctx)
		t.yield.Store(&cancel)
		return mine, func() { cancel(); <-t.busy }, nil
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("%w: its record is being written: %w", content.ErrUnavailable, context.Cause(ctx))
	}
}

// Yield ends what who has it waits for, where guests wait for whose the volume is.
func (t *Turn) Yield() {
	if yield := t.yield.Load(); yield != nil {
		(*yield)()
	}
}
