package cache

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"runtime"
	"sync/atomic"
	"unsafe"

	"github.com/dchest/siphash"

	"github.com/grangemesh/grange/origin/content"
)

const (
	indexMagic  = "GRCIDX\x00\x01"
	indexHeader = 4096
	entrySize   = 16

	wordEmpty   = 0
	wordRemoved = 1

	// loadMax is the share of entries, in sixteenths, above which the table grows:
	// probes stay short.
	loadMax = 13
)

// table is the mapped index. Words are read by anyone, and written under the
// cache's lock, except for the bits that a reader sets by compare-and-swap.
type table struct {
	raw   []byte
	words []uint64 // two an entry
	n     uint64   // entries
	k0    uint64
	k1    uint64
}

// place is word 1 of an entry.
type place uint64

const (
	slotBits, slabBits, lengthBits, dayBits, freqBits, genBits = 10, 22, 20, 5, 2, 4

	slabShift   = slotBits
	lengthShift = slabShift + slabBits
	dayShift    = lengthShift + lengthBits
	freqShift   = dayShift + dayBits
	pinShift    = freqShift + freqBits
	genShift    = pinShift + 1

	slabsMax = 1 << slabBits
	freqMax  = 1<<freqBits - 1
	daysMax  = 1<<dayBits - 1 // days are 1 to daysMax; 0 is never
)

func (p place) field(shift, bits int) uint64 { return uint64(p) >> shift & (1<<bits - 1) }

func (p place) with(shift, bits int, v uint64) place {
	mask := uint64(1<<bits-1) << shift
	return place(uint64(p)&^mask | v<<shift)
}

func (p place) slot() int    { return int(p.field(0, slotBits)) }
func (p place) slab() int    { return int(p.field(slabShift, slabBits)) }
func (p place) length() int  { return int(p.field(lengthShift, lengthBits)) + 1 }
func (p place) day() uint64  { return p.field(dayShift, dayBits) }
func (p place) freq() uint64 { return p.field(freqShift, freqBits) }
func (p place) pinned() bool { return p.field(pinShift, 1) == 1 }

// where is the part that says where the bytes lie, and which writing of the slot
// they are: what a reader compares.
func (p place) where() uint64 {
	return uint64(p) & (1<<dayShift - 1 | (1<<genBits-1)<<genShift)
}

func newPlace(slab, slot, length int) place {
	return place(0).with(0, slotBits, uint64(slot)).with(slabShift, slabBits, uint64(slab)).with(lengthShift, lengthBits, uint64(length-1))
}

// newTable lays a table over mapped bytes, which begin with a valid header.
func newTable(raw []byte) (*table, error) {
	if len(raw) < indexHeader || string(raw[:8]) != indexMagic {
		return nil, fmt.Errorf("cache index: %w: no magic", content.ErrCorrupt)
	}
	n := binary.LittleEndian.Uint64(raw[8:])
	if n == 0 || uint64(len(raw)-indexHeader)/entrySize != n || uint64(len(raw)-indexHeader)%entrySize != 0 {
		return nil, fmt.Errorf("cache index: %w: %d entries in %d bytes", content.ErrCorrupt, n, len(raw))
	}
	return &table{
		raw: raw, words: unsafe.Slice((*uint64)(unsafe.Pointer(&raw[indexHeader])), 2*n), n: n,
		k0: binary.LittleEndian.Uint64(raw[16:]), k1: binary.LittleEndian.Uint64(raw[24:]),
	}, nil
}

func writeIndexHeader(raw []byte, entries, k0, k1 uint64) {
	copy(raw, indexMagic)
	binary.LittleEndian.PutUint64(raw[8:], entries)
	binary.LittleEndian.PutUint64(raw[16:], k0)
	binary.LittleEndian.PutUint64(raw[24:], k1)
}

// hash returns the keyed hash of a CID, never one of the special words.
func (t *table) hash(id content.CID) uint64 {
	h := siphash.Hash(t.k0, t.k1, id[:])
	if h <= wordRemoved {
		h += 2
	}
	return h
}

// home is where the probes for a hash begin.
func (t *table) home(h uint64) uint64 {
	i, _ := bits.Mul64(h, t.n)
	return i
}

func (t *table) next(i uint64) uint64 {
	if i++; i == t.n {
		return 0
	}
	return i
}

// The mapping goes when its table is unreachable, so each access keeps it alive.

func (t *table) word0(i uint64) uint64 {
	w := atomic.LoadUint64(&t.words[2*i])
	runtime.KeepAlive(t)
	return w
}

func (t *table) place(i uint64) place {
	w := atomic.LoadUint64(&t.words[2*i+1])
	runtime.KeepAlive(t)
	return place(w)
}

func (t *table) swap(i uint64, old, new place) bool {
	ok := atomic.CompareAndSwapUint64(&t.words[2*i+1], uint64(old), uint64(new))
	runtime.KeepAlive(t)
	return ok
}

// set writes an entry: the hash goes first when one is taken away, and last when
// one is given, so that a hash always stands beside a place of its own.
func (t *table) set(i, h uint64, p place) {
	if h <= wordRemoved {
		atomic.StoreUint64(&t.words[2*i], h)
	}
	atomic.StoreUint64(&t.words[2*i+1], uint64(p))
	atomic.StoreUint64(&t.words[2*i], h)
	runtime.KeepAlive(t)
}

// find returns the entry of a hash. Probing is linear, and ends at an empty
// entry; a table that the disk has filled with junk is probed once around.
func (t *table) find(h uint64) (i uint64, p place, ok bool) {
	i = t.home(h)
	for range t.n {
		switch t.word0(i) {
		case h:
			return i, t.place(i), true
		case wordEmpty:
			return 0, 0, false
		}
		i = t.next(i)
	}
	return 0, 0, false
}

// insert adds an entry that is not there. Called with the lock.
func (t *table) insert(h uint64, p place) {
	i := t.home(h)
	for t.word0(i) > wordRemoved {
		i = t.next(i)
	}
	t.set(i, h, p)
}

// remove takes an entry out. Called with the lock. An entry before an empty one
// becomes empty itself, so that probes get short again.
func (t *table) remove(i uint64) {
	t.set(i, wordRemoved, 0)
	for t.word0(t.next(i)) == wordEmpty && t.word0(i) == wordRemoved {
		t.set(i, wordEmpty, 0)
		if i == 0 {
			i = t.n
		}
		i--
	}
}

// emptyTable finds nothing: what a closed cache has.
func emptyTable() *table {
	raw := make([]byte, indexHeader+entrySize)
	writeIndexHeader(raw, 1, 0, 0)
	t, err := newTable(raw)
	if err != nil {
		panic(fmt.Sprintf("cache: empty table: %v", err))
	}
	return t
}
