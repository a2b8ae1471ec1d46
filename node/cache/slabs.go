package cache

import (
	"errors"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"

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

// load maps the index and takes stock of the slots, or makes the index anew from
// the names when it can't be used. Objects are hashed at their first touch, so
// whatever it finds, no wrong bytes are returned.
func (c *Cache) load() error {
	c.tick()
	boot := bootID()
	t, err := openTable(c.indexPath())
	why := ""
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		why = err.Error()
	default:
		why = t.distrust(boot)
	}
	if err == nil && why == "" {
		c.secret = headerOf(t.raw).secret
		c.table.Store(t)
		if err := c.adopt(t); err != nil {
			return err
		}
	} else if err := c.recollect(why); err != nil {
		return err
	}
	t = c.table.Load()
	t.opened(boot)
	if err := syncHeader(t.raw); err != nil { // or a crash of the machine might leave a table that looks shut
		return err
	}
	return c.loadPins()
}

func (c *Cache) indexPath() string { return filepath.Join(c.cfg.Dir, "index") }

// adopt takes over an index's entries but contradictions: one object a slot at most.
func (c *Cache) adopt(t *table) error {
	dropped := 0
	for i := range t.words {
		w := t.word(i)
		if w == 0 {
			continue
		}
		at, reach := t.located(i)
		cl, ok := t.class(at.slab())
		if w.tag() == 0 || !ok || !c.slabs.claim(at, cl) {
			t.clear(i)
			dropped++
			continue
		}
		w = w.withDay(0) &^ pinBit
		t.set(i, w, at, reach)
		c.counted(at, w, 1)
	}
	if dropped > 0 {
		c.cfg.Log.Warn("the cache's index contradicts itself; those entries are dropped", "entries", dropped)
	}
	if err := c.settle(t); err != nil {
		return err
	}
	if n, want := len(t.words), c.cfg.shape().entries; n < want/2 || n/4 > want && c.objects() < want/2 ||
		len(t.classes) < c.cfg.shape().slabs { // the quota has changed
		return c.resize(want)
	}
	return nil
}

func (c *Cache) recollect(why string) error {
	c.secret = secret{rand.Uint64(), rand.Uint64()}
	size := c.cfg.shape()
	size.slabs = max(size.slabs, roundUp(c.names.slabs(), 2))
	t, err := createTable(c.indexPath(), size, c.secret)
	if err != nil {
		return err
	}
	c.table.Store(t)
	for number := range c.names.slabs() {
		c.roomy()
		t = c.table.Load()
		c.eachName(number, 1<<slotBits, func(at place, n name) { c.recall(t, at, n) })
	}
	if why != "" {
		c.cfg.Log.Warn("the cache's index can't be used; it was made anew from the names of the chunks", "why", why, "chunks", c.objects())
	}
	if err := installTable(c.indexPath()); err != nil {
		return err
	}
	return c.settle(t)
}

func (c *Cache) recall(t *table, at place, n name) {
	k, cl := c.secret.key(n.id), classOf(n.length)
	i, vacant := t.vacancy(k)
	if _, _, twice := t.find(k); twice || !vacant || !c.slabs.claim(at, cl) {
		return
	}
	w := k.word()
	if n.length == cl.size() {
		w |= fullBit
	}
	t.set(i, w, at, n.reach)
	t.setClass(at.slab(), uint32(cl)+1)
	c.counted(at, w, 1)
}

func (c *Cache) eachName(number, slots int, f func(place, name)) {
	records := c.names.slab(number, slots, c.slabName)
	for slot := range slots {
		at := newPlace(number, slot)
		if n, ok := decodeName(records[slot*nameSize:][:nameSize], at); ok {
			f(at, n)
		}
	}
}

// settle ends a start: the slabs that have entries are in use, and no others.
func (c *Cache) settle(t *table) error {
	c.slabs.collect()
	for number := range t.classes {
		cl := uint32(0)
		if number < len(c.slabs.all) && c.slabs.all[number].used {
			cl = uint32(c.slabs.all[number].class) + 1
		}
		if t.classes[number] != cl {
			t.setClass(number, cl)
		}
	}
	if n := len(c.slabs.all); n > 0 {
		return c.openFile((n - 1) / slabsPerFile)
	}
	return nil
}

func (c *Cache) objects() (n int) {
	for cl := range class(classes) {
		n += c.evictable(cl) + c.census[cl][pinned]
	}
	return n
}

// roomy has the table grow for one more entry, if it can: see displace. With mu.
func (c *Cache) roomy() {
	n := len(c.table.Load().words)
	if c.cramped || c.objects() < n/16*loadMax {
		return
	}
	if err := c.resize(2 * n); err != nil {
		c.cramped = true
		c.cfg.Log.Warn("the cache's index can't grow", "err", err)
	}
}

// resize moves the entries to a table of another size; readers go on with the old one
// meanwhile. An entry whose slot has lost its name is lost. Called with mu.
func (c *Cache) resize(entries int) error {
	old := c.table.Load()
	size := shape{max(c.cfg.shape().slabs, len(old.classes)), entries}
	t, err := createTable(c.indexPath(), size, c.secret)
	if err != nil {
		return err
	}
	copy(t.classes, old.classes)
	t.opened(bootID())
	moved := make([]uint64, len(c.slabs.all)<<slotBits/64)
	for number := range c.slabs.all {
		if b := &c.slabs.all[number]; b.used {
			c.eachName(number, b.class.slots(), func(at place, n name) {
				k := c.secret.key(n.id)
				i, w, ok := old.find(k)
				if !ok || old.place(i) != at {
					return
				}
				_, reach := old.located(i)
				if i, ok := t.vacancy(k); ok {
					t.set(i, w, at, reach)
					moved[at/64] |= 1 << (at % 64)
				}
			})
		}
	}
	if err := installTable(c.indexPath()); err != nil {
		return err
	}
	c.table.Store(t)
	for i := range old.words {
		if at := old.place(i); old.word(i) != 0 && moved[at/64]>>(at%64)&1 == 0 {
			c.remove(old, i)
			c.giveSlot(at)
		}
	}
	return nil
}
