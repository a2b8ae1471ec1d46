// Package loads bounds what is brought in for other members at once.
package loads

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/grangemesh/grange/node/fetch/plan"
)

const (
	// loadMax bounds the bytes that are brought in for a member at once and that it has
	// not taken: twice what one that warms an image has under way. They are in memory
	// for as long as it likes.
	loadMax = 16 << 20
	// PartMax is what one request has brought in at a time: a run that compresses well.
	PartMax = 4 << 20
)

// Loads is what is being brought in for others. The zero value is nothing. Safe for
// concurrent use.
type Loads struct {
	mu sync.Mutex // guards of
	of map[Key]*load
}

// Key is a member by what it asks for: guests wait for no bulk, nor requests for
// those of another depth, as flights don't.
type Key struct {
	From  plan.Peer
	Guest bool
	Depth plan.Depth
}

type load struct {
	room  *semaphore.Weighted
	users int
}

// Take waits for room for n bytes, which are held until give is called.
func (l *Loads) Take(ctx context.Context, key Key, n int) (give func(), err error) {
	l.mu.Lock()
	if l.of == nil {
		l.of = map[Key]*load{}
	}
	x := l.of[key]
	if x == nil {
		x = &load{room: semaphore.NewWeighted(loadMax)}
		l.of[key] = x
	}
	x.users++
	l.mu.Unlock()
	weight := int64(min(n, loadMax))
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if x.users--; x.users == 0 {
			delete(l.of, key)
		}
	}
	if err := x.room.Acquire(ctx, weight); err != nil {
		leave()
		return nil, err
	}
	return func() { x.room.Release(weight); leave() }, nil
}
