// Package shown follows what members show of roots: bitmaps of the chunks that they
// hold, which they send and let grow as they like. All of a node's together take
// bounded memory. A member that shows too much to be kept shows nothing: it is
// asked last, not shut out.
package shown

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// memberMax bounds the bitmap of a member, in bytes: any set of a root of 2^24
	// chunks, a TiB of the default size.
	memberMax = 2 << 20
	// rootMax bounds those of one root: of eight such members, or of all that are
	// followed for roots of 256 GiB.
	rootMax = 16 << 20
	// nodeMax bounds those of all roots.
	nodeMax = 48 << 20
	// bitmapOverhead is what a bitmap takes besides its containers.
	bitmapOverhead = 256
)

// Book is who shows what, of all roots of a node. Safe for concurrent use.
//
// Lock order: Peers.mu, table.mu, Book.mu.
type Book struct {
	cfg Config

	mu     sync.Mutex // guards what follows
	bytes  int
	clock  uint64 // of the uses of tables
	tables map[*table]uint64
}

// New returns an empty Book.
func New(cfg Config) *Book { return &Book{cfg: cfg} }

// Bytes returns about how much memory all bitmaps take.
func (b *Book) Bytes() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// grow notes that a table takes more, or less; use that it was looked at. A table
// that takes nothing is forgotten.
func (b *Book) grow(t *table, delta int, use bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes += delta
	last, known := b.tables[t]
	switch {
	case t.bytes == 0:
		delete(b.tables, t)
		return
	case b.tables == nil:
		b.tables = map[*table]uint64{}
	}
	if use || !known {
		b.clock++
		last = b.clock
	}
	b.tables[t] = last
}

// trim makes room: bitmaps of members far away go first, then those of this farm,
// those of the roots that were looked at longest ago first.
func (b *Book) trim() {
	for _, far := range []bool{true, false} {
		if b.Bytes() <= nodeMax {
			return
		}
		b.mu.Lock()
		uses := maps.Clone(b.tables)
		b.mu.Unlock()
		for _, t := range slices.SortedFunc(maps.Keys(uses), func(s, t *table) int { return cmp.Compare(uses[s], uses[t]) }) {
			if b.Bytes() <= nodeMax {
				return
			}
			t.dropAll(far)
		}
	}
}

// table is what members show of one root. Safe for concurrent use.
type table struct {
	book *Book

	mu    sync.Mutex // guards what follows
	held  map[plan.Peer]*bitmap
	bytes int
}

type bitmap struct {
	set   *content.Bitmap
	far   bool
	bytes int
}

// Show takes what a member shows: all that it holds, when anew, else additions to
// that. The set is the table's from then on. An error is content.ErrNoSpace: there
// is no room for what it shows, so it shows nothing.
func (t *table) Show(p plan.Peer, far, anew bool, set *content.Bitmap) error {
	t.change(func() {
		h := t.held[p]
		if h == nil {
			h = new(bitmap)
			t.held[p] = h
		}
		if h.far = far; anew || h.set == nil {
			h.set = set
		} else {
			h.set.Union(set)
		}
		t.resize(h)
		if h.bytes > memberMax {
			t.remove(p)
		}
		for t.bytes > rootMax {
			t.remove(t.spare(p))
		}
	})
	t.book.trim()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held[p] == nil {
		return fmt.Errorf("%w: what it shows takes too much memory", content.ErrNoSpace)
	}
	return nil
}

func (t *table) resize(h *bitmap) {
	now := h.set.Bytes() + bitmapOverhead
	t.bytes += now - h.bytes
	h.bytes = now
}

// spare is whose bitmap to drop: the largest of those far away, else that of the
// member which has shown more last.
func (t *table) spare(last plan.Peer) plan.Peer {
	out, most := last, 0
	for p, h := range t.held {
		if h.far && (h.bytes > most || h.bytes == most && p < out) {
			out, most = p, h.bytes
		}
	}
	return out
}

func (t *table) remove(p plan.Peer) {
	if h := t.held[p]; h != nil {
		t.bytes -= h.bytes
		delete(t.held, p)
	}
}

// change counts what a change of the table takes or gives.
func (t *table) change(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.bytes
	f()
	t.book.grow(t, t.bytes-before, false)
}

func (t *table) dropAll(far bool) {
	t.change(func() {
		for p, h := range t.held {
			if h.far == far {
				t.remove(p)
			}
		}
	})
}

// Drop forgets what a member showed.
func (t *table) Drop(p plan.Peer) { t.change(func() { t.remove(p) }) }

// Lacks notes what a member turned out not to hold, whatever its bitmap said: it
// may have evicted it.
func (t *table) Lacks(p plan.Peer, indexes []uint64) {
	t.change(func() {
		if h := t.held[p]; h != nil {
			for _, i := range indexes {
				h.set.Remove(i)
			}
			t.resize(h)
		}
	})
}

// Counts returns how many chunks members show.
func (t *table) Counts() map[plan.Peer]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[plan.Peer]uint64{}
	for p, h := range t.held {
		out[p] = h.set.Len()
	}
	return out
}

// Holders orders members, those far away and those of this farm apart, by how much
// of what is missing they show; none of it leaves a member out. Without anything
// missing, those that show most come first. Members that show the same take turns:
// who comes first changes with what is missing.
func (t *table) Holders(missing []uint64) (near, far []plan.Peer) {
	key := "map"
	if len(missing) > 0 {
		key = content.Chunk(missing[0]).String()
	}
	holds := map[plan.Peer]uint64{}
	t.mu.Lock()
	for p, h := range t.held {
		n := uint64(0)
		for _, i := range missing {
			if h.set.Has(i) {
				n++
			}
		}
		if len(missing) == 0 {
			n = h.set.Len()
		}
		if holds[p] = n; n == 0 {
			continue
		}
		if h.far {
			far = append(far, p)
		} else {
			near = append(near, p)
		}
	}
	t.book.grow(t, 0, true)
	t.mu.Unlock()
	order := func(list []plan.Peer) []plan.Peer {
		list = plan.Rank(key, list)
		slices.SortStableFunc(list, func(a, b plan.Peer) int { return cmp.Compare(holds[b], holds[a]) })
		return list
	}
	return order(near), order(far)
}
