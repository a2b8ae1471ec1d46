package cache

import (
	"math/bits"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// slabSize is the unit in which a class of sizes gets space, and gives it back.
	slabSize = 16 << 20
	// slotMin is the smallest slot; a slab has up to 1 << slotBits.
	slotMin = slabSize >> slotBits
	// slotMax holds the largest chunk.
	slotMax = content.ChunkSizeMax
	// slabsPerFile bounds a file to 64 GiB, which every file system takes.
	slabsPerFile = 4096
)

// class is a size of slots: slotMin << class.
type class uint8

const classes = 7 // 16 KiB to 1 MiB

func classOf(length int) class {
	c := class(0)
	for c.size() < length {
		c++
	}
	return c
}

func (c class) size() int  { return slotMin << c }
func (c class) slots() int { return slabSize / c.size() }

// census counts objects by their kind, which is what eviction thinks of them.
type census [pinned + 1]int

func (w word) kind() int {
	switch {
	case w.pinned():
		return pinned
	case w.main():
		return onMain
	}
	return onProbation
}

// slab is 16 MiB of one class, or unused.
type slab struct {
	used   bool
	class  class
	born   int // in which order slabs came into use
	taken  int // slots in use: objects, what is being written, and bad spots
	census census
	bitmap []uint64 // a bit a slot
}

func (s *slab) has(slot int) bool { return s.bitmap[slot/64]>>(slot%64)&1 == 1 }

// slabs hands out slots, under the cache's lock, for some 100 bytes of memory a slab.
type slabs struct {
	all   []slab
	free  [classes][]int // slabs with a free slot, some perhaps full meanwhile
	count [classes]int   // slabs of a class
	idle  []int          // unused slabs below len(all)
	live  int            // slabs in use
	born  int            // of the last
}

// claim marks a slot that a start finds as taken; false when it contradicts one before.
func (s *slabs) claim(at place, c class) bool {
	for at.slab() >= len(s.all) {
		s.all = append(s.all, slab{})
	}
	b := &s.all[at.slab()]
	if !b.used {
		s.use(at.slab(), c)
	}
	if b.class != c || at.slot() >= c.slots() || b.has(at.slot()) {
		return false
	}
	b.bitmap[at.slot()/64] |= 1 << (at.slot() % 64)
	b.taken++
	return true
}

func (s *slabs) use(number int, c class) {
	s.born++
	s.all[number] = slab{used: true, class: c, born: s.born, bitmap: make([]uint64, (c.slots()+63)/64)}
	s.live++
	s.count[c]++
}

// collect rebuilds the lists after the claims of a start.
func (s *slabs) collect() {
	for n, b := range s.all {
		switch {
		case !b.used:
			s.idle = append(s.idle, n)
		case b.taken < b.class.slots():
			s.free[b.class] = append(s.free[b.class], n)
		}
	}
}

// take returns a free slot of a class in the slabs that there are.
func (s *slabs) take(c class) (place, bool) {
	for list := s.free[c]; len(list) > 0; list = s.free[c] {
		number := list[len(list)-1]
		b := &s.all[number]
		if !b.used || b.class != c || b.taken == c.slots() {
			s.free[c] = list[:len(list)-1]
			continue
		}
		for w, word := range b.bitmap {
			if slot := w*64 + bits.TrailingZeros64(^word); slot < min((w+1)*64, c.slots()) {
				b.bitmap[w] |= 1 << (slot % 64)
				b.taken++
				return newPlace(number, slot), true
			}
		}
	}
	return 0, false
}

// grow adds a slab to a class, and returns its number, which is below most.
func (s *slabs) grow(c class, most int) (number int, ok bool) {
	switch {
	case len(s.idle) > 0:
		number = s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
	case len(s.all) < most:
		number = len(s.all)
		s.all = append(s.all, slab{})
	default:
		return 0, false
	}
	s.use(number, c)
	s.free[c] = append(s.free[c], number)
	return number, true
}

// give returns a slot. It reports whether its slab is empty now.
func (s *slabs) give(at place) (empty bool) {
	b := &s.all[at.slab()]
	if b.taken == b.class.slots() {
		s.free[b.class] = append(s.free[b.class], at.slab())
	}
	b.bitmap[at.slot()/64] &^= 1 << (at.slot() % 64)
	b.taken--
	return b.taken == 0
}

func (s *slabs) drop(number int) {
	s.live--
	s.count[s.all[number].class]--
	s.all[number] = slab{}
	s.idle = append(s.idle, number)
}

func offset(at place, c class) (file int, off int64) {
	return at.slab() / slabsPerFile, int64(at.slab()%slabsPerFile)*slabSize + int64(at.slot())*int64(c.size())
}
