package cache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// reserve finds a slot for an object: a free one, one of a new slab, or one that
// an eviction frees.
func (c *Cache) reserve(length int) (place, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, os.ErrClosed
	}
	cl := classOf(length)
	for range growTries {
		if number, slot, ok := c.slabs.take(cl); ok {
			return newPlace(number, slot, length), c.openFile(number / slabsPerFile)
		}
		if c.mayGrow() && c.slabs.grow(cl) {
			continue
		}
		if !c.evictFor(cl) {
			break
		}
	}
	return 0, fmt.Errorf("%d objects of %d bytes, and none may go", c.count, c.bytes)
}

// openFile makes sure that slabs of a file can be written to. Called with mu.
func (c *Cache) openFile(number int) error {
	files := *c.files.Load()
	for n := len(files); n <= number; n++ {
		f, err := os.OpenFile(filepath.Join(c.cfg.Dir, fmt.Sprintf("slabs-%04d", n)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		files = append(slices.Clone(files), f)
	}
	c.files.Store(&files)
	return nil
}

// limit is how many bytes the slabs may take now: the quota, or what there is
// when the disk runs short for others. Called with mu.
func (c *Cache) limit() int64 {
	limit := c.cfg.Quota
	free, total, err := diskFree(c.cfg.Dir)
	if err != nil {
		return limit
	}
	room := int64(free) - int64(total)*reserveShare/100
	return min(limit, int64(c.slabs.live)*slabSize+room)
}

func (c *Cache) mayGrow() bool   { return int64(c.slabs.live+1)*slabSize <= c.limit() }
func (c *Cache) overLimit() bool { return int64(c.slabs.live)*slabSize > c.limit() }

// evictFor frees a slot of a class. The clock's hand goes round the table: an
// object that was used since it last came by loses a use and stays, one that was
// not goes. What was read once, as by a scan, goes in the first round. When the
// class has no slab at all, another class loses one. Called with mu.
func (c *Cache) evictFor(cl class) bool {
	if !slices.ContainsFunc(c.slabs.all, func(s slab) bool { return s.used && s.class == cl }) {
		return c.evictSlab()
	}
	t := c.table.Load()
	for range t.n * (freqMax + 1) {
		c.hand = t.next(c.hand % t.n)
		if t.word0(c.hand) <= wordRemoved {
			continue
		}
		pl := t.place(c.hand)
		switch {
		case pl.pinned() || classOf(pl.length()) != cl:
		case pl.freq() > 0:
			t.swap(c.hand, pl, pl.with(freqShift, freqBits, pl.freq()-1))
		default:
			c.evict(t, c.hand, pl)
			return true
		}
	}
	return false
}

// evictSlab empties the slab with the fewest objects, none of them pinned, and
// makes it unused. Called with mu.
func (c *Cache) evictSlab() bool {
	t := c.table.Load()
	pinned := map[int]bool{}
	for i := range t.n {
		if t.word0(i) > wordRemoved && t.place(i).pinned() {
			pinned[t.place(i).slab()] = true
		}
	}
	victim := -1
	for n, s := range c.slabs.all {
		if s.used && !pinned[n] && (victim < 0 || s.taken < c.slabs.all[victim].taken) {
			victim = n
		}
	}
	if victim < 0 {
		return false
	}
	for i := range t.n {
		if t.word0(i) > wordRemoved && t.place(i).slab() == victim {
			c.evict(t, i, t.place(i))
		}
	}
	s := c.slabs.all[victim]
	if !s.used { // the last eviction gave it back already
		return true
	}
	if s.taken > 0 { // a Put is writing there
		return false
	}
	c.returnSlab(victim)
	return true
}

// returnSlab makes an empty slab unused and its space the disk's. Called with
// mu.
func (c *Cache) returnSlab(number int) {
	c.slabs.drop(number)
	files := *c.files.Load()
	if n := number / slabsPerFile; n < len(files) {
		if err := punchHole(files[n], int64(number%slabsPerFile)*slabSize, slabSize); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			c.cfg.Log.Warn("space of the cache is not given back", "err", err)
		}
	}
}

// room returns a table that an entry can be added to: the present one, or a
// larger one that takes its place. nil means that there is none. Called with mu.
func (c *Cache) room(t *table) *table {
	if uint64(c.count)+c.removed < t.n*loadMax/16 {
		return t
	}
	n := t.n
	if uint64(c.count) > t.n*loadMax/32 { // not only the marks of removed entries
		n *= 2
	}
	path := filepath.Join(c.cfg.Dir, "index")
	bigger, err := createTable(path+".new", n, [2]uint64{t.k0, t.k1})
	if err == nil {
		for i := range t.n {
			if h := t.word0(i); h > wordRemoved {
				bigger.insert(h, t.place(i))
			}
		}
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		c.cfg.Log.Warn("the cache's index can't grow", "err", err)
		return nil
	}
	c.hand, c.removed = 0, 0
	c.table.Store(bigger)
	return bigger
}
