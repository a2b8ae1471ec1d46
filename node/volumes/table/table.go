// Package table keeps what a node has open, by name.
package table

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Table is things by their names. The zero Table is empty. Safe for concurrent use; it is
// never locked while anything waits.
type Table[T comparable] struct {
	mu sync.RWMutex
	of map[string]T
}

// Get returns what has a name, zero if nothing has.
func (t *Table[T]) Get(name string) T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.of[name]
}

// Set gives a thing a name, and returns what had it; zero takes the name away.
func (t *Table[T]) Set(name string, x T) (old T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old = t.of[name]
	var none T
	if x == none {
		delete(t.of, name)
		return old
	}
	if t.of == nil {
		t.of = map[string]T{}
	}
	t.of[name] = x
	return old
}

// Clear empties it.
func (t *Table[T]) Clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.of)
}

// All returns what there is.
func (t *Table[T]) All() map[string]T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return maps.Clone(t.of)
}

// Each calls f for all, so many at once, and joins the errors.
func (t *Table[T]) Each(parallel int, f func(name string, x T) error) error {
	all := t.All()
	var group errgroup.Group
	group.SetLimit(parallel)
	errs := make([]error, len(all))
	for i, name := range slices.Sorted(maps.Keys(all)) {
		group.Go(func() error {
			errs[i] = f(name, all[name])
			return nil
		})
	}
	return errors.Join(append(errs, group.Wait())...)
}
