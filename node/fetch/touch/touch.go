// Package touch records which chunks of an image a guest reads, in the order in which it first does.
package touch

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// Max is how many chunks a Trace keeps: as many as a list has.
	Max = catalog.BootChunksMax
	// Least is how few are no boot yet: a host looks at each disk that it comes by, for tables of partitions and file systems.
	Least = 24
	// quietFor is how long after the last new chunk a boot is over: longer than systems pause in one, where nothing but the
	// processor is waited for.
	quietFor = 30 * time.Second
	// copies is of how many chunks all but one are read right behind the one before by who copies a disk, or looks through all
	// of it; of a boot's a third are not.
	copies = 8
	// LastsMax is how long a boot takes at most; one without hardware that helps takes a minute or two.
	LastsMax = 5 * time.Minute
)

// Trace is one boot, and a nil one of nothing. Safe for concurrent use; Touch is cheap for what was touched before.
type Trace struct {
	leaves []atomic.Pointer[leaf]
	begun  func()
	ended  atomic.Bool

	mu          sync.Mutex // guards what follows
	order       []uint64
	more        bool // than Max were touched
	inRow       int  // how many of these were touched right behind the one before
	first, last time.Time
}

// leaf has a bit for each chunk of a map node.
type leaf [content.MapFanout / 64]atomic.Uint64

// New is a Trace of an image of so many chunks; begun is called, once, with the first that is touched. It must not wait.
func New(chunks uint64, begun func()) *Trace {
	return &Trace{leaves: make([]atomic.Pointer[leaf], (chunks+content.MapFanout-1)/content.MapFanout), begun: begun}
}

// Touch notes that a chunk of the image was read.
func (t *Trace) Touch(index uint64) {
	if t == nil || t.ended.Load() {
		return
	}
	word, bit := index%content.MapFanout/64, uint64(1)<<(index%64)
	l := t.leaves[index/content.MapFanout].Load()
	if l != nil && l[word].Load()&bit != 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if l = t.leaves[index/content.MapFanout].Load(); l == nil {
		l = new(leaf)
		t.leaves[index/content.MapFanout].Store(l)
	}
	if l[word].Or(bit)&bit != 0 {
		return
	}
	now := time.Now()
	if t.last = now; t.first.IsZero() {
		t.first = now
		t.begun()
	}
	if len(t.order) == Max {
		t.more = true
		return
	}
	if n := len(t.order); n > 0 && t.order[n-1]+1 == index {
		t.inRow++
	}
	t.order = append(t.order, index)
}

// End has nothing more be noted.
func (t *Trace) End() { t.ended.Store(true) }

// Has reports whether a chunk was touched.
func (t *Trace) Has(index uint64) bool {
	if index/content.MapFanout >= uint64(len(t.leaves)) {
		return false
	}
	l := t.leaves[index/content.MapFanout].Load()
	return l != nil && l[index%content.MapFanout/64].Load()&(1<<(index%64)) != 0
}

// Chunks are those that were touched, in the order of their first touch, Max at most.
func (t *Trace) Chunks() []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.order[:len(t.order):len(t.order)]
}

// Boot are the Chunks of a boot that has ended, by itself or, where over says so, with the use of its disk; nil of what was none.
func (t *Trace) Boot(over bool) []uint64 {
	if t == nil || !over && !t.ended.Load() {
		return nil
	}
	if _, boot := t.Over(time.Now()); !boot {
		return nil
	}
	return t.Chunks()
}

// Over reports whether the boot has ended by now, and whether it was one: else it was a look, or a copy.
func (t *Trace) Over(now time.Time) (over, boot bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	late := !t.first.IsZero() && now.Sub(t.first) >= LastsMax
	quiet := len(t.order) >= Least && now.Sub(t.last) >= quietFor
	return late || quiet || t.more, len(t.order) >= Least && !(t.more && t.inRow >= Max-Max/copies)
}
