package verify

import (
	"hash/maphash"
	"maps"
	"sync"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// rightMax bounds what is known to be right, some 16 bytes each: the frames of half a terabyte of images.
	rightMax = 4 << 20
	// refsMax bounds the packs that are remembered of map nodes below which all is right, 32 bytes each with their names.
	refsMax = 512 << 10
)

// Seen is what was read and is right, whatever root names it: it is not read again. What is more than it may keep is.
// Safe for concurrent use.
type Seen struct {
	seed maphash.Seed // of the hashes that stand for what was read: nobody can make two that are the same

	mu       sync.Mutex // guards what follows
	right    map[uint64]struct{}
	subtrees map[uint64][]ref
	refs     int
	packs    pack.Table
}

// ref is a pack.PackRefs without pointers.
type ref struct {
	pack  uint32
	refs  uint32
	bytes uint64
}

// NewSeen returns one that has seen nothing.
func NewSeen() *Seen {
	return &Seen{seed: maphash.MakeSeed(), right: make(map[uint64]struct{}), subtrees: make(map[uint64][]ref)}
}

// subtree is a map node and all below it, as far as its place decides what is right there.
type subtree struct {
	pack.Pair
	level    int
	scope    content.Scope
	chunkMax int
	even     bool
	chunks   uint64 // that the root has below it
}

// Has reports whether what an extent or anything else names that is comparable was found right.
func (s *Seen) Has(what any) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.right[maphash.Comparable(s.seed, what)]
	return ok
}

// Add notes what was found right.
func (s *Seen) Add(what any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.right) < rightMax {
		s.right[maphash.Comparable(s.seed, what)] = struct{}{}
	}
}

func (s *Seen) below(t subtree) (refs, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept, ok := s.subtrees[maphash.Comparable(s.seed, t)]
	if !ok {
		return nil, false
	}
	out := make(refs, len(kept))
	for _, r := range kept {
		id := s.packs.IDs()[r.pack]
		out[id] = pack.PackRefs{ID: id, Refs: uint64(r.refs), Bytes: r.bytes}
	}
	return out, true
}

func (s *Seen) addBelow(t subtree, of refs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs += len(of); s.refs > refsMax {
		s.refs -= len(of)
		return
	}
	kept := make([]ref, 0, len(of))
	for p := range maps.Values(of) {
		kept = append(kept, ref{s.packs.Number(p.ID), uint32(p.Refs), p.Bytes})
	}
	s.subtrees[maphash.Comparable(s.seed, t)] = kept
}

// refs is what a map, or a part of it, refers to.
type refs map[pack.ID]pack.PackRefs

// add counts a place of the map, as the manifest does.
func (r refs) add(id pack.ID, places, bytes uint64) {
	p := r[id]
	r[id] = pack.PackRefs{ID: id, Refs: p.Refs + places, Bytes: p.Bytes + bytes}
}

func (r refs) merge(o refs) {
	for id, p := range o {
		r.add(id, p.Refs, p.Bytes)
	}
}
