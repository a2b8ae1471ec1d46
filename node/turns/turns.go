// Package turns lets those who want the same thing have it in turn.
package turns

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Turns is who has a turn at what, each thing shared by parts. Safe for concurrent use.
type Turns[K comparable] struct {
	parts int64

	mu sync.Mutex // guards of
	of map[K]*turn
}

type turn struct {
	room  *semaphore.Weighted
	users int
}

// New returns Turns at things of so many parts; of one part, they are had by one at a
// time.
func New[K comparable](parts int64) *Turns[K] { return &Turns[K]{parts: parts, of: map[K]*turn{}} }

// Take waits for n parts of a thing, or for all if there are not so many, which are the
// caller's until give is called.
func (t *Turns[K]) Take(ctx context.Context, key K, n int64) (give func(), err error) {
	t.mu.Lock()
	x := t.of[key]
	if x == nil {
		x = &turn{room: semaphore.NewWeighted(t.parts)}
		t.of[key] = x
	}
	x.users++
	t.mu.Unlock()
	n = min(n, t.parts)
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if x.users--; x.users == 0 {
			delete(t.of, key)
		}
	}
	if err := x.room.Acquire(ctx, n); err != nil {
		leave()
		return nil, err
	}
	return func() { x.room.Release(n); leave() }, nil
}
