// Package resident keeps decoded map nodes in memory: a bounded number, of all
// roots together, in tables that grow with what they hold.
package resident

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Table is the values of one root, by a key. The zero value is empty. A value may
// vanish at any time. Reads take no lock and allocate nothing.
type Table[T any] struct {
	entries atomic.Pointer[map[uint64]*entry[T]] // never changed once it is here
}

type entry[T any] struct {
	key   uint64
	table *Table[T]
	value *T
	used  atomic.Bool // since the clock's hand passed
}

func (t *Table[T]) find(key uint64) *entry[T] {
	if all := t.entries.Load(); all != nil {
		return (*all)[key]
	}
	return nil
}

// Peek returns the value of a key, or nil.
func (t *Table[T]) Peek(key uint64) *T {
	if e := t.find(key); e != nil {
		return e.value
	}
	return nil
}

// Get is Peek that counts as use. It writes seldom, so that readers share the line.
func (t *Table[T]) Get(key uint64) *T {
	e := t.find(key)
	if e == nil {
		return nil
	}
	if !e.used.Load() {
		e.used.Store(true)
	}
	return e.value
}

// replace makes the table anew without one entry and with another; either may be
// nil. Called with the clock's lock.
func (t *Table[T]) replace(gone, come *entry[T]) {
	next := map[uint64]*entry[T]{}
	if all := t.entries.Load(); all != nil {
		next = maps.Clone(*all)
	}
	if gone != nil {
		delete(next, gone.key)
	}
	if come != nil {
		next[come.key] = come
	}
	t.entries.Store(&next)
}

// Clock bounds the values of many tables: one that was used since the hand passed
// gets another round. Safe for concurrent use.
type Clock[T any] struct {
	max  int
	mu   sync.Mutex // guards what follows, and every change of a table
	ring []*entry[T]
	hand int
}

// NewClock returns a Clock for so many values, at least one.
func NewClock[T any](most int) *Clock[T] { return &Clock[T]{max: max(most, 1)} }

// Keep puts a value into a table, in place of the one that has its key; another one
// may leave its own table.
func (c *Clock[T]) Keep(t *Table[T], key uint64, value *T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := &entry[T]{key: key, table: t, value: value}
	if old := t.find(key); old != nil {
		c.ring[slices.Index(c.ring, old)] = e
		t.replace(old, e)
		return
	}
	if len(c.ring) < c.max {
		c.ring = append(c.ring, e)
		t.replace(nil, e)
		return
	}
	for c.ring[c.hand].used.Swap(false) {
		c.hand = (c.hand + 1) % c.max
	}
	old := c.ring[c.hand]
	old.table.replace(old, nil)
	c.ring[c.hand] = e
	c.hand = (c.hand + 1) % c.max
	t.replace(nil, e)
}
