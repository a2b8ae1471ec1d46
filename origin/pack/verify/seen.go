package verify

import (
	"hash/maphash"
	"maps"
	"sync"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// framesMax bounds the frames that are known to be right, some 16 bytes each: those of half a terabyte of images.
	framesMax = 4 << 20
	// refsMax bounds the packs that are remembered of map nodes below which all is right, 32 bytes each with their names.
	refsMax = 512 << 10
)

// Seen is what was read and is right, whatever root names it: it is not read again. What is more than it may keep is.
// A nil Seen has seen nothing, and learns nothing. Safe for concurrent use.
type Seen struct {
	seed maphash.Seed // of the hashes that stand for what was read: nobody can make two that are the same

	mu       sync.Mutex // guards what follows
	frames   map[uint64]struct{}
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
	return &Seen{seed: maphash.MakeSeed(), frames: make(map[uint64]struct{}), subtrees: make(map[uint64][]ref)}
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

func (s *Seen) frame(e pack.Extent) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.frames[maphash.Comparable(s.seed, e)]
	return ok
}

func (s *Seen) addFrame(e pack.Extent) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.frames) < framesMax {
		s.frames[maphash.Comparable(s.seed, e)] = struct{}{}
	}
}

func (s *Seen) below(t subtree) (refs, bool) {
	if s == nil {
		return nil, false
	}
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
	if s == nil {
		return
	}
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
