package cache

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
)

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

// recollect makes an index from the names of the slots.
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

// eachName calls f with each valid name among a slab's first slots.
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
