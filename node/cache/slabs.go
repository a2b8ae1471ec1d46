package cache

import (
	"math/bits"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// slabSize is the unit in which space is given to a class of sizes, and back
	// to the disk.
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

// slab is 16 MiB of one class, or unused.
type slab struct {
	used   bool
	class  class
	taken  int      // slots in use
	bitmap []uint64 // a bit a slot
}

// slabs hands out slots. Guarded by the cache's lock. Its memory is one bit a
// slot: 1 MiB for a TiB.
type slabs struct {
	all  []slab
	free [classes][]int // slabs with a free slot, some perhaps full meanwhile
	idle []int          // unused slabs below len(all)
	live int            // slabs in use
}

// claim marks a slot as taken, as found in the index at a start; false when it
// contradicts what was found before.
func (s *slabs) claim(number, slot int, c class) bool {
	for number >= len(s.all) {
		s.all = append(s.all, slab{})
	}
	b := &s.all[number]
	if !b.used {
		s.use(number, c)
	}
	if b.class != c || slot >= c.slots() || b.bitmap[slot/64]>>(slot%64)&1 == 1 {
		return false
	}
	b.bitmap[slot/64] |= 1 << (slot % 64)
	b.taken++
	return true
}

func (s *slabs) use(number int, c class) {
	s.all[number] = slab{used: true, class: c, bitmap: make([]uint64, (c.slots()+63)/64)}
	s.live++
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
func (s *slabs) take(c class) (number, slot int, ok bool) {
	for list := s.free[c]; len(list) > 0; list = s.free[c] {
		number = list[len(list)-1]
		b := &s.all[number]
		if !b.used || b.class != c || b.taken == c.slots() {
			s.free[c] = list[:len(list)-1]
			continue
		}
		for w, word := range b.bitmap {
			if slot = w*64 + bits.TrailingZeros64(^word); slot < min((w+1)*64, c.slots()) {
				b.bitmap[w] |= 1 << (slot % 64)
				b.taken++
				return number, slot, true
			}
		}
	}
	return 0, 0, false
}

// grow adds a slab to a class.
func (s *slabs) grow(c class) bool {
	var number int
	switch {
	case len(s.idle) > 0:
		number = s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
	case len(s.all) < slabsMax:
		number = len(s.all)
		s.all = append(s.all, slab{})
	default:
		return false
	}
	s.use(number, c)
	s.free[c] = append(s.free[c], number)
	return true
}

// give returns a slot. It reports whether its slab is empty now.
func (s *slabs) give(number, slot int) (empty bool) {
	b := &s.all[number]
	if b.taken == b.class.slots() {
		s.free[b.class] = append(s.free[b.class], number)
	}
	b.bitmap[slot/64] &^= 1 << (slot % 64)
	b.taken--
	return b.taken == 0
}

// drop makes an empty slab unused.
func (s *slabs) drop(number int) {
	s.all[number] = slab{}
	s.idle = append(s.idle, number)
	s.live--
}

// offset of a slot in its file.
func offset(p place, c class) (file int, off int64) {
	return p.slab() / slabsPerFile, int64(p.slab()%slabsPerFile)*slabSize + int64(p.slot())*int64(c.size())
}
