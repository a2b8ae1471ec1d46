package budget

import (
	"context"
	"sync/atomic"
)

// Class says how urgent a request is.
type Class int32

// The classes, the most urgent last.
const (
	Seeding  Class = iota // others' copies in the background
	Prefetch              // what nobody waits for yet
	Ahead                 // what a guest will probably read next
	Needed                // somebody waits for it

	classes = int(Needed) + 1
)

// Turn says for whom a request is, and how urgent. Safe for concurrent use.
type Turn struct {
	asker  string
	class  atomic.Int32
	raised chan struct{}
}

// NewTurn returns that of an asker, who is one of those that share a class evenly; "" is this node.
func NewTurn(class Class, asker string) *Turn {
	t := &Turn{asker: asker, raised: make(chan struct{}, 1)}
	t.class.Store(int32(class))
	return t
}

// Raise makes a request as urgent as class, if it is less, also while it waits: somebody
// else has come to need what it brings.
func (t *Turn) Raise(class Class) {
	for now := t.class.Load(); now < int32(class); now = t.class.Load() {
		if t.class.CompareAndSwap(now, int32(class)) {
			select {
			case t.raised <- struct{}{}:
			default:
			}
			return
		}
	}
}

type turnKey struct{}

// With returns a ctx whose requests have a turn. Those of another are needed, by this node.
func With(ctx context.Context, t *Turn) context.Context { return context.WithValue(ctx, turnKey{}, t) }

func turnOf(ctx context.Context) *Turn {
	if t, ok := ctx.Value(turnKey{}).(*Turn); ok {
		return t
	}
	return NewTurn(Needed, "")
}
