package cache

import (
	"errors"
	"fmt"
	"io"

	"github.com/grangemesh/grange/origin/content"
)

// Put keeps a chunk whose bytes were obtained for that reach. ErrNoSpace means that
// there was no room: the caller goes on without. A chunk that is here already is
// success, and goes as far as the wider of the two. The bytes are copied.
//
// Nothing is synced, in no order: the chunk is hashed at its first touch after a
// start, and what a crash tore is dropped then.
func (c *Cache) Put(v content.Verified, reach Reach) error {
	length := len(v.Bytes())
	if length == 0 || length > slotMax {
		return fmt.Errorf("cache: %w: a chunk of %d bytes", content.ErrInvalid, length)
	}
	if c.Has(v.CID()) && (c.HasFor(v.CID(), reach) || c.widen(v.CID(), reach)) {
		return nil
	}
	at, err := c.reserve(classOf(length))
	if err == nil {
		err = c.commit(v, at, reach, c.write(at, v, reach))
	}
	switch {
	case err == nil:
		c.full.Store(false)
		return nil
	case errors.Is(err, content.ErrClosed):
		return fmt.Errorf("cache: %w", err)
	}
	c.unkept(err)
	return fmt.Errorf("cache: %w: %w", content.ErrNoSpace, err)
}

// unkept counts a chunk that is passed on without being kept, and says so now and then.
func (c *Cache) unkept(err error) {
	c.metrics.unkept.Inc()
	c.full.Store(true)
	c.short.Do(func() {
		c.cfg.Log.Warn("the cache is full: chunks are passed on without being kept", "err", err)
	})
}

// reserve finds a slot: a free one, one of a new slab, or one that an eviction frees.
func (c *Cache) reserve(cl class) (place, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range reserveTries {
		if c.closed.Load() {
			return 0, content.ErrClosed
		}
		if at, ok := c.slabs.take(cl); ok {
			return at, nil
		}
		if c.mayGrow() {
			if err := c.addSlab(cl); err != nil {
				return 0, err
			}
		} else if !c.makeRoom(cl) {
			break
		}
	}
	return 0, fmt.Errorf("%d bytes in %d slabs, and nothing may go", c.bytes, c.slabs.live)
}

// addSlab gives a class one more slab. Called with mu.
func (c *Cache) addSlab(cl class) error {
	t := c.table.Load()
	number, ok := c.slabs.grow(cl, len(t.classes))
	if !ok {
		return fmt.Errorf("%d slabs is the most there can be", len(t.classes))
	}
	t.setClass(number, uint32(cl)+1)
	if err := c.openFile(number / slabsPerFile); err != nil {
		return err
	}
	// In one piece a write costs less than where each finds disk of its own. Without it
	// a write fails by itself, if there is no room.
	if f, off, ok := c.file(newPlace(number, 0), cl); ok {
		_ = allocate(f, off, slabSize)
	}
	return nil
}

func (c *Cache) write(at place, v content.Verified, reach Reach) error {
	f, off, ok := c.file(at, classOf(len(v.Bytes())))
	if !ok {
		return io.ErrClosedPipe
	}
	if _, err := f.WriteAt(v.Bytes(), off); err != nil {
		return err
	}
	return c.names.write(at, name{v.CID(), len(v.Bytes()), reach})
}

// commit makes a slot findable, or gives it back: unwritten, or another was faster.
func (c *Cache) commit(v content.Verified, at place, reach Reach, failed error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed.Load():
		return content.ErrClosed
	case failed != nil:
		c.giveSlot(at)
		return failed
	}
	c.roomy()
	t, k := c.table.Load(), c.secret.key(v.CID())
	if i, _, ok := t.find(k); ok {
		c.giveSlot(at)
		c.raise(t, i, reach)
		return nil
	}
	i, ok := t.vacancy(k)
	if !ok {
		if i, ok = c.displace(t, k); !ok {
			c.giveSlot(at)
			return errors.New("all that it could take the index entry of is pinned")
		}
	}
	w := k.word().withDay(c.day(k.tag)).withPeriod(c.period())
	if len(v.Bytes()) == classOf(len(v.Bytes())).size() {
		w |= fullBit
	}
	if c.pinnedBy(v.CID()) {
		w |= pinBit
	}
	t.set(i, w, at, reach)
	c.counted(at, w, 1)
	return nil
}

// giveSlot frees a slot, and its slab when that is empty and too much. Called with mu.
func (c *Cache) giveSlot(at place) {
	c.names.blank(at)
	if c.slabs.give(at) && c.overLimit() {
		c.returnSlab(at.slab())
	}
}

// counted adds an object to the counts, or takes it out. Called with mu.
func (c *Cache) counted(at place, w word, n int) {
	b := &c.slabs.all[at.slab()]
	b.census[w.kind()] += n
	c.census[b.class][w.kind()] += n
	c.bytes += int64(n * b.class.size())
}
