// Package roots keeps the roots that others may ask a node for. What members
// introduce is bounded for each of them, and never pushes out what the node has
// looked up itself.
package roots

import (
	"iter"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// learnedMax bounds the roots that this node has looked up; beyond it those that
	// nobody asked for for longest are forgotten, one part in learnedForgotten: each
	// import and each fold of a volume makes another root.
	learnedMax       = 100_000
	learnedForgotten = 16
	// headsMax bounds the heads of one root that were looked up: it has several where
	// it was imported twice, and seldom more.
	headsMax = 8
	// introducedEach bounds the roots that are known by one member's word, and
	// introducedMax those by the word of any: some 6 KiB each, with the record. Beyond
	// it the oldest of the member goes, or of the one that has most.
	introducedEach = 512
	introducedMax  = 8192
)

// Name is what a root is known by. Its CID covers neither scope nor pages: another
// head may name the same root and say otherwise of them.
type Name struct {
	ID   content.CID
	Head pack.Head
	// Introducer handed the record over; "" where this node looked it up.
	Introducer peer.ID
}

// Root is what is kept of a root.
type Root interface {
	comparable
	Name() Name
}

// Store is the roots by head. Not safe for concurrent use.
type Store[T Root] struct {
	by         map[content.CID][]*entry[T]
	learned    int
	introduced int
	from       map[peer.ID][]*entry[T] // by introducer, the oldest first
}

type entry[T Root] struct {
	Name
	root T
	used time.Time
}

// New returns an empty Store.
func New[T Root]() *Store[T] {
	return &Store[T]{by: map[content.CID][]*entry[T]{}, from: map[peer.ID][]*entry[T]{}}
}

// Learned returns the root that was looked up with that head, or else with one that
// differs in its scope alone: another record of the same.
func (s *Store[T]) Learned(id content.CID, head pack.Head) (root T, ok bool) {
	if e := s.find(id, head); e != nil {
		return e.root, true
	}
	for _, e := range s.by[id] {
		if head.Scope = e.Head.Scope; e.Introducer == "" && e.Head == head {
			return e.root, true
		}
	}
	return root, false
}

func (s *Store[T]) find(id content.CID, head pack.Head) *entry[T] {
	for _, e := range s.by[id] {
		if e.Introducer == "" && e.Head == head {
			return e
		}
	}
	return nil
}

// Learn enters a root that was looked up, or returns what is known by its head. Those
// of the same scope that were introduced go.
func (s *Store[T]) Learn(root T, now time.Time) T {
	e := &entry[T]{root.Name(), root, now}
	if known := s.find(e.ID, e.Head); known != nil {
		known.used = now
		return known.root
	}
	var heads []*entry[T]
	for _, other := range slices.Clone(s.by[e.ID]) {
		switch {
		case other.Introducer == "":
			heads = append(heads, other)
		case other.Head.Scope == e.Head.Scope:
			s.remove(other)
		}
	}
	if len(heads) >= headsMax {
		s.remove(slices.MinFunc(heads, byUse))
	}
	if s.learned >= learnedMax {
		s.forget()
	}
	s.learned++
	s.by[e.ID] = append(s.by[e.ID], e)
	return root
}

func byUse[T Root](a, b *entry[T]) int { return a.used.Compare(b.used) }

// forget makes room for others that are looked up.
func (s *Store[T]) forget() {
	var all []*entry[T]
	for _, list := range s.by {
		for _, e := range list {
			if e.Introducer == "" {
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, byUse)
	for _, e := range all[:max(1, len(all)/learnedForgotten)] {
		s.remove(e)
	}
}

// Introduce enters a root by a member's word, or returns what is known by its head.
func (s *Store[T]) Introduce(root T, now time.Time) T {
	e := &entry[T]{root.Name(), root, now}
	for _, known := range s.by[e.ID] {
		if known.Head == e.Head {
			return known.root
		}
	}
	loser := e.Introducer
	if s.introduced >= introducedMax && len(s.from[loser]) == 0 {
		for id, list := range s.from {
			if len(list) > len(s.from[loser]) {
				loser = id
			}
		}
	}
	if s.introduced >= introducedMax || len(s.from[loser]) >= introducedEach {
		s.remove(s.from[loser][0])
	}
	s.introduced++
	s.from[e.Introducer] = append(s.from[e.Introducer], e)
	s.by[e.ID] = append(s.by[e.ID], e)
	return root
}

// remove takes a root out.
func (s *Store[T]) remove(e *entry[T]) {
	without(s.by, e.ID, e)
	if e.Introducer == "" {
		s.learned--
		return
	}
	s.introduced--
	without(s.from, e.Introducer, e)
}

// without takes an element out of the list of a key, and the key with the last.
func without[K, E comparable](m map[K][]E, key K, gone E) {
	if m[key] = slices.DeleteFunc(m[key], func(e E) bool { return e == gone }); len(m[key]) == 0 {
		delete(m, key)
	}
}

// End takes out all heads of a root that have that scope, and returns those that were
// looked up.
func (s *Store[T]) End(id content.CID, scope content.Scope) (out []T) {
	for _, e := range slices.Clone(s.by[id]) {
		if e.Head.Scope != scope {
			continue
		}
		s.remove(e)
		if e.Introducer == "" {
			out = append(out, e.root)
		}
	}
	return out
}

// Best returns what is known of a root that ranks highest, the latest of equals, and
// counts it as used; ranks below 0 don't count.
func (s *Store[T]) Best(id content.CID, now time.Time, rank func(T) int) (root T, ok bool) {
	var best *entry[T]
	most := 0
	for _, e := range s.by[id] {
		if n := rank(e.root); n >= most {
			best, most = e, n
		}
	}
	if best == nil {
		return root, false
	}
	best.used = now
	return best.root, true
}

// Of yields the heads of one root.
func (s *Store[T]) Of(id content.CID) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, e := range s.by[id] {
			if !yield(e.root) {
				return
			}
		}
	}
}

// All yields every head of every root.
func (s *Store[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, list := range s.by {
			for _, e := range list {
				if !yield(e.root) {
					return
				}
			}
		}
	}
}

// toldMax bounds Told.
const toldMax = 64

// Told are the members that have told of a root lately, or were told, the latest last.
type Told []peer.ID

// Add adds a member, and reports whether it was there.
func (t *Told) Add(id peer.ID) (before bool) {
	before = slices.Contains(*t, id)
	*t = append(slices.DeleteFunc(*t, func(p peer.ID) bool { return p == id }), id)
	*t = (*t)[max(0, len(*t)-toldMax):]
	return before
}
