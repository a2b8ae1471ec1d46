package cache

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	pinsDir  = "pins"
	pinMagic = "GRPINS\x00\x01"
)

// pin is a mapped list of pins: the magic, then CIDs in rising order.
type pin struct {
	ids   []content.CID
	unmap func() error
}

// tally are the first 8 bytes of what all lists name, in rising order, each as often as
// lists name it: 8 bytes of memory, whatever the number of lists.
type tally []uint64

func tallied(id content.CID) uint64 { return binary.BigEndian.Uint64(id[:]) }

func (t tally) has(id content.CID) bool {
	_, ok := slices.BinarySearch(t, tallied(id))
	return ok
}

// with returns the tally with a list that is added, and without one that it had.
func (t tally) with(added, gone []content.CID) tally {
	out := make(tally, 0, len(t)+len(added))
	for _, n := range t {
		for len(added) > 0 && tallied(added[0]) < n {
			out, added = append(out, tallied(added[0])), added[1:]
		}
		if len(gone) > 0 && tallied(gone[0]) == n {
			gone = gone[1:]
			continue
		}
		out = append(out, n)
	}
	for _, id := range added {
		out = append(out, tallied(id))
	}
	return out
}

// distinct is how many objects they are.
func (t tally) distinct() (n int) {
	for i := range t {
		if i == 0 || t[i] != t[i-1] {
			n++
		}
	}
	return n
}

func compareCIDs(a, b content.CID) int { return strings.Compare(string(a[:]), string(b[:])) }

// Pin keeps chunks from eviction under a name, those too that come later; it
// replaces what the name pinned before. It is durable when it returns. The list
// takes 32 bytes of disk a chunk. ErrNoSpace means that what is pinned then would be more
// than most bytes, 0 for what the cache may take; where a chunk is not here yet it counts
// as a whole one.
func (c *Cache) Pin(name string, most int64, ids iter.Seq[content.CID]) error {
	if err := checkPin(name); err != nil {
		return err
	}
	list := slices.SortedFunc(ids, compareCIDs)
	list = slices.DeleteFunc(slices.Compact(list), content.CID.IsHole)
	b := make([]byte, 0, len(pinMagic)+len(list)*content.CIDSize)
	b = append(b, pinMagic...)
	for _, id := range list {
		b = append(b, id[:]...)
	}
	c.pinning.Lock()
	defer c.pinning.Unlock()
	limit := c.Stats().Limit
	if most > 0 {
		limit = min(limit, most)
	}
	next := c.pinned.with(list, c.pins[name].ids)
	if need := c.pinnedThen(next, list, c.pins[name].ids); need > limit {
		return fmt.Errorf("pin %s: %w: all that is pinned then takes up to %d bytes of the cache, and may take %d; raise its quota, make room on the disk, or unpin something", name, content.ErrNoSpace, need, limit)
	}
	path := c.pinPath(name)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = durable.WriteFile(path, b, 0o600)
	}
	var p pin
	if err == nil {
		p, err = openPin(path)
	}
	if err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return errors.Join(fmt.Errorf("pin %s: %w", name, content.ErrClosed), p.unmap())
	}
	old := c.pins[name]
	c.pins[name], c.pinned = p, next
	c.setPinned(p.ids)
	return c.endPin(old)
}

// checkPin fails with ErrInvalid unless a name is one that can pin.
func checkPin(name string) error {
	if n := len(content.Segment(name)); n == 0 || n > content.SegmentMax || strings.HasPrefix(name, durable.TempPrefix) {
		return fmt.Errorf("pin %.140q: %w: the name takes %d characters in a path", name, content.ErrInvalid, n)
	}
	return nil
}

// Unpin lets go what the name pinned and no other pins too. An absent name is success.
func (c *Cache) Unpin(name string) error {
	if err := checkPin(name); err != nil {
		return err
	}
	c.pinning.Lock()
	defer c.pinning.Unlock()
	if err := durable.Remove(c.pinPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) { // the folder comes with the first pin
		return fmt.Errorf("unpin %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return fmt.Errorf("unpin %s: %w", name, content.ErrClosed)
	}
	old := c.pins[name]
	delete(c.pins, name)
	c.pinned = c.pinned.with(nil, old.ids)
	return c.endPin(old)
}

// Pinned returns the names that pin something.
func (c *Cache) Pinned() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.pins))
}

func (c *Cache) pinPath(name string) string {
	return filepath.Join(c.cfg.Dir, pinsDir, content.Segment(name))
}

// setPinned marks the objects of a list that are here. Called with mu.
func (c *Cache) setPinned(ids []content.CID) {
	t := c.table.Load()
	for _, id := range ids {
		if i, w, ok := t.find(c.secret.key(id)); ok && !w.pinned() {
			c.mark(t, i, func(w word) word { return w | pinBit })
		}
	}
}

// pinnedThen is how many bytes a tally takes that differs from the present one by a list
// that is added and one that goes.
func (c *Cache) pinnedThen(next tally, added, gone []content.CID) (bytes int64) {
	here := 0
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.table.Load()
	count := func(cl class, n int) { here, bytes = here+n, bytes+int64(n*cl.size()) }
	for cl := range c.census {
		count(class(cl), c.census[cl][pinned])
	}
	change := func(ids []content.CID, is bool, n int) {
		for _, id := range ids {
			if i, w, ok := t.find(c.secret.key(id)); ok && w.pinned() != is && next.has(id) == is {
				at, _ := t.located(i)
				count(c.slabs.all[at.slab()].class, n)
			}
		}
	}
	change(added, true, 1)
	change(gone, false, -1)
	return bytes + int64(max(0, next.distinct()-here))*content.ChunkSizeDefault
}

// endPin lets go of a list that is none of the pins any more. Called with mu.
func (c *Cache) endPin(old pin) error {
	if old.unmap == nil {
		return nil
	}
	t := c.table.Load()
	for _, id := range old.ids {
		if i, w, ok := t.find(c.secret.key(id)); ok && w.pinned() && !c.pinned.has(id) {
			c.mark(t, i, func(w word) word { return w &^ pinBit })
		}
	}
	return old.unmap()
}

func openPin(path string) (pin, error) {
	b, unmap, err := mapFile(path, false)
	if err != nil {
		return pin{}, err
	}
	n := (len(b) - len(pinMagic)) / content.CIDSize
	if len(b) >= len(pinMagic) && string(b[:len(pinMagic)]) == pinMagic && len(b) == len(pinMagic)+n*content.CIDSize {
		if p := (pin{view[content.CID](b[len(pinMagic):], n), unmap}); slices.IsSortedFunc(p.ids, compareCIDs) {
			return p, nil
		}
	}
	return pin{}, errors.Join(fmt.Errorf("list of pins %s: %w", path, content.ErrCorrupt), unmap())
}

// loadPins reads the lists at a start. Chunks of a damaged one may be evicted.
func (c *Cache) loadPins() error {
	files, err := os.ReadDir(filepath.Join(c.cfg.Dir, pinsDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		name, err := content.NameOf(f.Name())
		if err != nil || checkPin(name) != nil { // a temporary file that a crash left
			continue
		}
		p, err := openPin(c.pinPath(name))
		if err != nil {
			c.cfg.Log.Warn("a list of pins can't be read; pin again", "name", name, "err", err)
			continue
		}
		c.pins[name] = p
		for _, id := range p.ids {
			c.pinned = append(c.pinned, tallied(id))
		}
		c.setPinned(p.ids)
	}
	slices.Sort(c.pinned)
	return nil
}

// Reach is how far an object may go from here: the widest scope under which its
// bytes were obtained. That a map names it does not count, as anyone can make a map
// that names what he knows the CID of.
type Reach uint8

// What is obtained for a reach may go as far as each that is less.
const (
	// ReachNone stays here: this node's own guests read it.
	ReachNone Reach = iota
	// ReachFarm goes to members of this node's farm.
	ReachFarm
	// ReachMesh goes to members of the mesh.
	ReachMesh
	// ReachPublic goes to anyone.
	ReachPublic
)

// narrowBatch bounds how many objects are narrowed under one lock: some milliseconds.
const narrowBatch = 1024

// ReachOf is how far goes what a node obtains under scope s: nowhere if it may not.
func ReachOf(s content.Scope, node trust.Identity) Reach {
	switch {
	case !node.MayRead(s):
		return ReachNone
	case s.IsPublic():
		return ReachPublic
	case s.Farm() == "":
		return ReachMesh
	}
	return ReachFarm
}

// Reach returns how far the chunk may go, without a lock; false when it is not here.
func (c *Cache) Reach(id content.CID) (Reach, bool) {
	k := c.secret.key(id)
	for range readTries {
		s, ok := c.look(k)
		if !ok {
			break
		}
		if c.still(s) {
			return s.reach, true
		}
	}
	return ReachNone, false
}

// HasFor reports whether the chunk is here and may go that far, which is not a use.
func (c *Cache) HasFor(id content.CID, reach Reach) bool {
	r, ok := c.Reach(id)
	return ok && r >= reach
}

// GetFor is Get of a chunk that may go that far; any other is as absent.
func (c *Cache) GetFor(id content.CID, reach Reach, buf []byte) (content.Verified, error) {
	if !c.HasFor(id, reach) {
		return content.Verified{}, c.miss()
	}
	return c.Get(id, buf)
}

// Narrow has the chunks that are here go no farther than most; no crash undoes that.
func (c *Cache) Narrow(ids []content.CID, most Reach) error {
	changed := false
	var failed error
	for batch := range slices.Chunk(ids, narrowBatch) {
		some, err := c.lower(batch, most)
		changed, failed = changed || some, cmp.Or(err, failed)
	}
	if failed == nil && changed {
		failed = c.names.file.Sync()
	}
	if failed != nil {
		return fmt.Errorf("cache: narrow: %w", failed)
	}
	return nil
}

// lower is Narrow of one batch, short of the sync.
func (c *Cache) lower(ids []content.CID, most Reach) (changed bool, failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return false, content.ErrClosed
	}
	t := c.table.Load()
	for _, id := range ids {
		i, _, ok := t.find(c.secret.key(id))
		if !ok {
			continue
		}
		if at, reach := t.located(i); reach > most {
			t.setReach(i, most)
			changed = true
			if err := c.rename(t, i, at, most); err != nil {
				failed = err
			}
		}
	}
	return changed, failed
}

// widen has an object that is here go farther; false when it is here no more.
func (c *Cache) widen(id content.CID, reach Reach) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.table.Load()
	i, _, ok := t.find(c.secret.key(id))
	if ok {
		c.raise(t, i, reach)
	}
	return ok
}

// raise makes an object's reach at least so much. Called with mu.
func (c *Cache) raise(t *table, i int, reach Reach) {
	if at, now := t.located(i); now < reach {
		t.setReach(i, reach)
		_ = c.rename(t, i, at, reach) // an index that is made anew has it go less far
	}
}

// rename writes an object's reach into its record. Called with mu.
func (c *Cache) rename(t *table, i int, at place, reach Reach) error {
	n, ok := c.names.read(at)
	if !ok { // a rotten one is no name
		return nil
	}
	n.reach = reach
	err := c.names.write(at, n)
	c.turn(t.word(i).tag()).Add(1) // a reader of the record may have seen half of it: it looks again
	return err
}
