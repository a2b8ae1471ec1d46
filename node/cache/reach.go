package cache

import (
	"fmt"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

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
	for len(ids) > 0 {
		n := min(len(ids), narrowBatch)
		some, err := c.lower(ids[:n], most)
		changed = changed || some
		if err != nil {
			failed = err
		}
		ids = ids[n:]
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
