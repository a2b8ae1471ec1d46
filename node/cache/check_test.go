package cache

import (
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// check looks at all that must hold between calls: each entry has a slot of its
// own, and what is counted is there.
func check(t interface {
	Helper()
	Fatalf(string, ...any)
}, c *Cache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	table := c.table.Load()
	var total [classes]census
	of := make([]census, len(c.slabs.all))
	owner := map[place]int{}
	for i := range table.words {
		w, at := table.word(i), table.place(i)
		if w == 0 {
			continue
		}
		if other, twice := owner[at]; twice {
			t.Fatalf("entries %d and %d both have slot %d of slab %d", i, other, at.slot(), at.slab())
		}
		owner[at] = i
		b := &c.slabs.all[at.slab()]
		if cl, ok := table.class(at.slab()); !b.used || !ok || cl != b.class || !b.has(at.slot()) {
			t.Fatalf("entry %d has slot %d of slab %d, which is not taken", i, at.slot(), at.slab())
		}
		of[at.slab()][w.kind()]++
		total[b.class][w.kind()]++
	}
	live, count := 0, [classes]int{}
	for n, b := range c.slabs.all {
		if b.census != of[n] {
			t.Fatalf("slab %d counts %+v, and has %+v", n, b.census, of[n])
		}
		if b.used {
			live++
			count[b.class]++
		}
	}
	if total != c.census || live != c.slabs.live || count != c.slabs.count {
		t.Fatalf("counts %+v, %d slabs, %v; there are %+v, %d, %v", c.census, c.slabs.live, c.slabs.count, total, live, count)
	}
}

// leaked is how many slots are taken by nothing.
func leaked(c *Cache) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.slabs.all {
		n += b.taken - b.census[pinned] - b.census[onMain] - b.census[onProbation]
	}
	return n
}

// slotOf finds where an object lies.
func slotOf(t testing.TB, c *Cache, id content.CID) sight {
	t.Helper()
	s, ok := c.look(c.secret.key(id))
	if !ok {
		t.Fatalf("%s is not here", id.Short())
	}
	return s
}

// rot flips a bit of an object on disk.
func rot(t testing.TB, c *Cache, id content.CID, off int64) {
	t.Helper()
	s := slotOf(t, c, id)
	f, at, _ := c.file(s.at, s.class)
	var b [1]byte
	if _, err := f.ReadAt(b[:], at+off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at+off); err != nil {
		t.Fatal(err)
	}
}
