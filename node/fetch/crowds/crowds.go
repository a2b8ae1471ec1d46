// Package crowds keeps account of who is sent what, so that some of many can be referred
// to others.
package crowds

import (
	"sync"

	"github.com/grangemesh/grange/node/fetch/plan"
)

// Book has a crowd for each K that somebody is being sent. Safe for concurrent use.
type Book[K comparable] struct {
	mu     sync.Mutex // guards crowds
	crowds map[K]*plan.Crowd
}

// Begin enters a peer, unless it is to be referred to another one. Then End is called.
func (b *Book[K]) Begin(key K, from plan.Peer) (to plan.Peer, referred bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.crowds == nil {
		b.crowds = map[K]*plan.Crowd{}
	}
	c := b.crowds[key]
	if c == nil {
		c = new(plan.Crowd)
		b.crowds[key] = c
	}
	return c.Begin(from)
}

// End takes note that a peer, entered by Begin, has all or that sending ended.
func (b *Book[K]) End(key K, from plan.Peer, whole bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.crowds[key]
	if c.End(from, whole); c.Idle() {
		delete(b.crowds, key)
	}
}
