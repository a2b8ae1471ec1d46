package cache

import (
	"errors"
	"fmt"
	"io"

	"github.com/grangemesh/grange/blockdev/pagecache"
	"github.com/grangemesh/grange/origin/content"
)

// readTries bounds how often a read is repeated that met a removal: an object
// that is removed that often while it is read is as good as absent.
const readTries = 8

// sight is an entry as a reader found it.
type sight struct {
	table *table
	index int
	word  word
	at    place
	reach Reach
	class class
	turn  uint32
}

func (c *Cache) look(k key) (s sight, ok bool) {
	s.turn = c.turn(k.tag).Load()
	s.table = c.table.Load()
	if s.index, s.word, ok = s.table.find(k); !ok {
		return s, false
	}
	s.at, s.reach = s.table.located(s.index)
	s.class, ok = s.table.class(s.at.slab())
	return s, ok
}

// still reports whether the object lay where it was seen all the time since: a
// removal is counted before the slot can be written to.
func (c *Cache) still(s sight) bool { return c.turn(s.word.tag()).Load() == s.turn }

// Has reports whether the chunk is here; it may be bad. That does not count as use.
func (c *Cache) Has(id content.CID) bool {
	_, _, ok := c.table.Load().find(c.secret.key(id))
	return ok
}

// ReadAt fills p with the bytes of the chunk from off. ErrNotFound means that it is not
// here, ErrCorrupt that it was and has been dropped: both mean to fetch it. A range
// that is not the chunk's is ErrInvalid. A chunk that fills its slot and has been
// checked is one read of the file; that takes no lock and allocates nothing.
func (c *Cache) ReadAt(id content.CID, p []byte, off int) error {
	k := c.secret.key(id)
	for range readTries {
		s, ok := c.look(k)
		if !ok {
			break
		}
		if s.word.day() != c.day(k.tag) {
			return c.readChecked(id, p, off)
		}
		length, ok := c.length(id, s)
		if ok && (off < 0 || off > length || len(p) > length-off) {
			if !c.still(s) {
				continue
			}
			return outside(p, off, length)
		}
		ok = ok && c.pread(s, p, off)
		if !c.still(s) {
			continue
		}
		if !ok {
			return c.unreadable(id, s)
		}
		c.hit(s)
		return nil
	}
	return c.miss()
}

// TryReadAt is ReadAt of what the kernel has in memory, and neither waits nor
// allocates. False says nothing about the chunk: use ReadAt.
func (c *Cache) TryReadAt(id content.CID, p []byte, off int) bool {
	k := c.secret.key(id)
	s, ok := c.look(k)
	if !ok || !s.word.full() || s.word.day() != c.day(k.tag) || off < 0 || off > s.class.size()-len(p) {
		return false
	}
	f, at, ok := c.file(s.at, s.class)
	if !ok || !pagecache.Read(f, p, at+int64(off)) || !c.still(s) || c.closed.Load() {
		return false
	}
	c.hit(s)
	return true
}

// outside is for a range that is not the chunk's.
func outside(p []byte, off, length int) error {
	return fmt.Errorf("cache: %w: %d bytes at %d of a chunk of %d", content.ErrInvalid, len(p), off, length)
}

func (c *Cache) hit(s sight) {
	c.use(s)
	c.metrics.hits.Inc()
}

// readChecked is ReadAt for a chunk whose last check was too long ago.
func (c *Cache) readChecked(id content.CID, p []byte, off int) error {
	buf := c.buffers.Get(slotMax)
	defer c.buffers.Put(buf)
	v, err := c.Get(id, *buf)
	if err != nil {
		return err
	}
	if length := len(v.Bytes()); off < 0 || off > length || len(p) > length-off {
		return outside(p, off, length)
	}
	copy(p, v.Bytes()[off:])
	return nil
}

// Get returns the whole chunk, hashed again. buf is used for the bytes if its
// capacity is large enough. Errors are those of ReadAt.
func (c *Cache) Get(id content.CID, buf []byte) (content.Verified, error) {
	k := c.secret.key(id)
	for range readTries {
		s, ok := c.look(k)
		if !ok {
			break
		}
		v, again, err := c.verify(id, s, buf)
		switch {
		case again:
			continue
		case err != nil:
			return content.Verified{}, err
		}
		c.hit(s)
		return v, nil
	}
	return content.Verified{}, c.miss()
}

// ReadFor returns the bytes of a whole chunk that may go that far, for a peer, who
// hashes them again: here they are hashed only if they were not since the start, nor
// for recheckAfter. Else it is GetFor.
func (c *Cache) ReadFor(id content.CID, reach Reach, buf []byte) ([]byte, error) {
	k := c.secret.key(id)
	for range readTries {
		s, ok := c.look(k)
		if !ok || s.reach < reach {
			break
		}
		if s.word.day() != c.day(k.tag) {
			v, err := c.Get(id, buf)
			return v.Bytes(), err
		}
		b, again, err := c.whole(id, s, buf)
		if again {
			continue
		}
		if err == nil {
			c.hit(s)
		}
		return b, err
	}
	return nil, c.miss()
}

// whole reads an object. A removed one says again.
func (c *Cache) whole(id content.CID, s sight, buf []byte) (b []byte, again bool, err error) {
	length, ok := c.length(id, s)
	if cap(buf) < length {
		buf = make([]byte, length)
	}
	buf = buf[:length]
	ok = ok && c.pread(s, buf, 0)
	switch {
	case !c.still(s):
		return nil, true, nil
	case !ok:
		return nil, false, c.unreadable(id, s)
	}
	return buf, false, nil
}

// verify reads and hashes an object; a bad one is dropped. A removed one says again.
func (c *Cache) verify(id content.CID, s sight, buf []byte) (v content.Verified, again bool, err error) {
	if buf, again, err = c.whole(id, s, buf); again || err != nil {
		return v, again, err
	}
	if v, err = content.Verify(id, buf); err == nil {
		c.checked(s)
		return v, false, nil
	}
	c.drop(id, s, false)
	c.metrics.corrupt.Inc()
	c.bad.Do(func() {
		c.cfg.Log.Warn("a chunk in the cache was bad and is dropped; a crash of the machine leaves such, or its disk is rotten", "cid", id)
	})
	return v, false, fmt.Errorf("cache: %w", err)
}

// length of an object: its slot's, or else what the slot's name says.
func (c *Cache) length(id content.CID, s sight) (int, bool) {
	if s.word.full() {
		return s.class.size(), true
	}
	n, ok := c.names.read(s.at)
	return n.length, ok && n.id == id && classOf(n.length) == s.class
}

func (c *Cache) pread(s sight, p []byte, off int) bool {
	f, at, ok := c.file(s.at, s.class)
	if !ok {
		return false
	}
	n, _ := f.ReadAt(p, at+int64(off)) // at the end of the file, n says it all
	return n == len(p)
}

func (c *Cache) miss() error {
	if c.closed.Load() {
		return content.ErrClosed
	}
	c.metrics.misses.Inc()
	return content.ErrNotFound
}

// unreadable drops a chunk that the disk does not give: it may be kept elsewhere.
func (c *Cache) unreadable(id content.CID, s sight) error {
	if !c.closed.Load() {
		c.drop(id, s, true)
		c.metrics.readErrors.Inc()
	}
	return c.miss()
}

// use counts one use of an object a period. A lost race loses a count.
func (c *Cache) use(s sight) {
	w := s.table.word(s.index)
	if now := c.period(); w.period() != now && w.tag() == s.word.tag() {
		s.table.swap(s.index, w, w.withPeriod(now).withFreq(min(w.freq()+1, freqMax)))
	}
}

// checked notes that an object is good today.
func (c *Cache) checked(s sight) {
	for {
		w := s.table.word(s.index)
		day := c.day(s.word.tag())
		if w.tag() != s.word.tag() || w.day() == day || !c.still(s) || s.table.swap(s.index, w, w.withDay(day)) {
			return
		}
	}
}

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
		if more := int64(c.slabs.live+1) * slabSize; more <= c.cfg.Quota && more <= c.limit() {
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
	if c.pinned.has(v.CID()) {
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
