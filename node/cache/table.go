package cache

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"github.com/dchest/siphash"

	"github.com/grangemesh/grange/origin/content"
)

const (
	indexMagic = "GRCIDX\x00\x02"
	headerSize = 4096
	classSize  = 4 // bytes a slab
	entrySize  = 8 + 4

	// bucketSize is how many entries share a bucket. Each object has two buckets
	// and lies in the emptier one, which fills buckets of 16 to nine tenths before
	// one overflows; and it is two cache lines to look through.
	bucketSize = 16
	// A table is made for a load of loadMade, and grows above loadMax, sixteenths:
	// at 13 the entries take 14.8 bytes each.
	loadMade, loadMax = 13, 14
)

// castagnoli is the polynomial that processors have an instruction for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// table is the mapped index. Anyone reads it; it is written under the cache's
// lock, except for the bits that a reader changes by compare-and-swap.
type table struct {
	raw     []byte
	classes []uint32 // a slab: 1 + its class; 0 is unused
	words   []uint64
	places  []uint32
}

// word is half of an entry: which object it is, what is known of it. Zero is none.
type word uint64

const (
	freqBits, periodBits, dayBits = 2, 2, 2

	periodShift = freqBits
	dayShift    = periodShift + periodBits
	mainBit     = word(1) << (dayShift + dayBits)
	pinBit      = mainBit << 1
	fullBit     = mainBit << 2
	tagShift    = dayShift + dayBits + 3

	freqMax = 1<<freqBits - 1
	periods = 1 << periodBits
	days    = 1<<dayBits - 1 // 1 to days; 0 is never
)

func (w word) field(shift, bits int) uint64 { return uint64(w) >> shift & (1<<bits - 1) }

func (w word) with(shift, bits int, v uint64) word {
	mask := uint64(1<<bits-1) << shift
	return word(uint64(w)&^mask | v<<shift)
}

func (w word) tag() uint64    { return uint64(w) >> tagShift }
func (w word) freq() uint64   { return w.field(0, freqBits) }
func (w word) period() uint64 { return w.field(periodShift, periodBits) }
func (w word) day() uint64    { return w.field(dayShift, dayBits) }
func (w word) main() bool     { return w&mainBit != 0 }
func (w word) pinned() bool   { return w&pinBit != 0 }
func (w word) full() bool     { return w&fullBit != 0 }

func (w word) withFreq(n uint64) word   { return w.with(0, freqBits, n) }
func (w word) withPeriod(n uint64) word { return w.with(periodShift, periodBits, n) }
func (w word) withDay(n uint64) word    { return w.with(dayShift, dayBits, n) }

// place is the other half: where the object lies.
type place uint32

const (
	slotBits, slabBits = 10, 20 // of 32; the rest is the object's reach
	placeBits          = slotBits + slabBits
	slabsMax           = 1 << slabBits
)

func newPlace(slab, slot int) place { return place(slab<<slotBits | slot) }
func (p place) slab() int           { return int(p >> slotBits) }
func (p place) slot() int           { return int(p & (1<<slotBits - 1)) }

// key is what the table knows an object by.
type key struct {
	tag    uint64 // never 0
	choice [2]uint32
}

// secret makes the keys of one cache, so that nobody can prepare objects that collide.
type secret [2]uint64

func (s secret) key(id content.CID) key {
	h, g := siphash.Hash128(s[0], s[1], id[:])
	return key{max(h>>tagShift, 1), [2]uint32{uint32(g), uint32(g >> 32)}}
}

func (k key) word() word { return word(k.tag << tagShift) }

// shape is the size of a table: of how many slabs it knows the class, a multiple
// of two, and how many entries it has room for, a multiple of bucketSize.
type shape struct{ slabs, entries int }

func (s shape) bytes() int { return headerSize + s.slabs*classSize + s.entries*entrySize }

func newTable(raw []byte) (*table, error) {
	if len(raw) < headerSize || string(raw[:8]) != indexMagic {
		return nil, fmt.Errorf("index: %w: no magic", content.ErrCorrupt)
	}
	slabs, n := headerOf(raw).slabs, headerOf(raw).entries
	if n == 0 || n%bucketSize != 0 || slabs%2 != 0 || slabs > slabsMax || (shape{int(slabs), int(n)}).bytes() != len(raw) {
		return nil, fmt.Errorf("index: %w: %d entries and %d slabs in %d bytes", content.ErrCorrupt, n, slabs, len(raw))
	}
	t := &table{raw: raw, classes: view[uint32](raw[headerSize:], int(slabs))}
	t.words = view[uint64](raw[headerSize+slabs*classSize:], int(n))
	t.places = view[uint32](raw[headerSize+slabs*classSize+8*n:], int(n))
	return t, nil
}

func view[T any](b []byte, n int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

// header begins an index file; see the package comment.
type header struct {
	magic          [8]byte
	entries, slabs uint32
	secret         secret
	boot           [16]byte
	shut, sum      uint32
}

func headerOf(raw []byte) *header { return &view[header](raw, 1)[0] }

func fillHeader(raw []byte, size shape, s secret) {
	*headerOf(raw) = header{magic: [8]byte([]byte(indexMagic)), entries: uint32(size.entries), slabs: uint32(size.slabs), secret: s}
}

// opened notes in the header that a process of this boot changes the table.
func (t *table) opened(boot [16]byte) {
	h := headerOf(t.raw)
	h.boot, h.shut = boot, 0
}

// shut notes that nobody changes it any more, and what it was then.
func (t *table) shut() {
	h := headerOf(t.raw)
	h.sum = crc32.Checksum(t.raw[headerSize:], castagnoli)
	h.shut = 1
	runtime.KeepAlive(t)
}

// distrust says why a table can't be used, or "". A table that was shut must be
// as it was then. One that was not is as the kernel kept it, if that is the same
// kernel still; after a loss of power it may be anything.
func (t *table) distrust(boot [16]byte) string {
	h := headerOf(t.raw)
	shut := h.shut == 1
	switch {
	case shut && h.sum != crc32.Checksum(t.raw[headerSize:], castagnoli):
		return "its checksum is wrong"
	case !shut && (boot == [16]byte{} || h.boot != boot):
		return "the machine went down while it was in use"
	}
	return ""
}

// The mapping goes when its table is unreachable, so each access keeps it alive.

func (t *table) word(i int) word {
	w := atomic.LoadUint64(&t.words[i])
	runtime.KeepAlive(t)
	return word(w)
}

func (t *table) place(i int) place {
	p, _ := t.located(i)
	return p
}

// located says where an entry's object lies and how far it may go, at one moment.
func (t *table) located(i int) (place, Reach) {
	p := atomic.LoadUint32(&t.places[i])
	runtime.KeepAlive(t)
	return place(p & (1<<placeBits - 1)), Reach(p >> placeBits)
}

// setReach changes how far an object may go. Called with the lock.
func (t *table) setReach(i int, r Reach) {
	atomic.StoreUint32(&t.places[i], uint32(t.place(i))|uint32(r)<<placeBits)
	runtime.KeepAlive(t)
}

func (t *table) swap(i int, old, new word) bool {
	ok := atomic.CompareAndSwapUint64(&t.words[i], uint64(old), uint64(new))
	runtime.KeepAlive(t)
	return ok
}

// change replaces a word by what f makes of it, whatever readers do meanwhile.
// Called with the lock, under which the object does not change.
func (t *table) change(i int, f func(word) word) (was, is word) {
	for {
		was = t.word(i)
		if is = f(was); t.swap(i, was, is) {
			return was, is
		}
	}
}

// class of a slab that an entry names; readers may ask.
func (t *table) class(slab int) (class, bool) {
	if slab >= len(t.classes) {
		return 0, false
	}
	c := atomic.LoadUint32(&t.classes[slab])
	runtime.KeepAlive(t)
	return class(c - 1), c-1 < classes
}

func (t *table) setClass(slab int, c uint32) {
	atomic.StoreUint32(&t.classes[slab], c)
	runtime.KeepAlive(t)
}

func (t *table) starts(k key) [2]int {
	buckets := uint32(len(t.words) / bucketSize)
	a, _ := bits.Mul32(k.choice[0], buckets)
	b, _ := bits.Mul32(k.choice[1], buckets)
	return [2]int{int(a) * bucketSize, int(b) * bucketSize}
}

func (t *table) find(k key) (i int, w word, ok bool) {
	for _, start := range t.starts(k) {
		bucket := t.words[start : start+bucketSize]
		for j := range bucket {
			if w = word(atomic.LoadUint64(&bucket[j])); w.tag() == k.tag {
				runtime.KeepAlive(t)
				return start + j, w, true
			}
		}
	}
	runtime.KeepAlive(t)
	return 0, 0, false
}

// vacancy returns a free entry for a key, of the emptier bucket. Called with the lock.
func (t *table) vacancy(k key) (i int, ok bool) {
	most := 0
	for _, start := range t.starts(k) {
		free, at := 0, 0
		for j := start; j < start+bucketSize; j++ {
			if t.word(j) == 0 {
				free, at = free+1, j
			}
		}
		if free > most {
			most, i = free, at
		}
	}
	return i, most > 0
}

// set fills a free entry: the place first, so that a word always stands beside
// the place of an object that was, or is, the word's. Called with the lock.
func (t *table) set(i int, w word, at place, r Reach) {
	atomic.StoreUint32(&t.places[i], uint32(at)|uint32(r)<<placeBits)
	atomic.StoreUint64(&t.words[i], uint64(w))
	runtime.KeepAlive(t)
}

// clear empties an entry. Called with the lock.
func (t *table) clear(i int) {
	atomic.StoreUint64(&t.words[i], 0)
	runtime.KeepAlive(t)
}

// locate returns the entry of a place, by looking at all. Called with the lock.
func (t *table) locate(at place) (i int, ok bool) {
	for i := range t.places {
		if t.place(i) == at && t.word(i) != 0 {
			return i, true
		}
	}
	return 0, false
}

// emptyTable finds nothing: what a closed cache has.
func emptyTable() *table {
	var none [bucketSize]uint64
	return &table{words: none[:], places: make([]uint32, bucketSize), raw: make([]byte, headerSize)}
}

const (
	// nameSize is a record of the names file: which object a slot is filled
	// with. The file is sparse, with room for the slots of the smallest class in
	// each slab, so that the record of a slot stays where it is.
	nameSize     = 40
	slabNameSize = nameSize << slotBits
)

// name is a record of the names file.
type name struct {
	id     content.CID
	length int
	reach  Reach
}

// reachShift is where the reach begins in the word of the length.
const reachShift = 30

func (n name) encode(at place) (b [nameSize]byte) {
	copy(b[:], n.id[:])
	binary.LittleEndian.PutUint32(b[32:], uint32(n.length)|uint32(n.reach)<<reachShift)
	binary.LittleEndian.PutUint32(b[36:], nameSum(b[:], at))
	return b
}

// nameSum covers the place too: a record elsewhere is not a record.
func nameSum(b []byte, at place) uint32 {
	return crc32.Checksum(b[:36], castagnoli) ^ uint32(at)*0x9e3779b1
}

// decodeName reads a record; false when it is none.
func decodeName(b []byte, at place) (name, bool) {
	w := binary.LittleEndian.Uint32(b[32:])
	n := name{content.CID(b[:32]), int(w & (1<<reachShift - 1)), Reach(w >> reachShift)}
	return n, n.length > 0 && n.length <= slotMax && binary.LittleEndian.Uint32(b[36:]) == nameSum(b, at)
}

// names is the file that says which object lies in which slot, and makes indexes anew.
type names struct{ file *os.File }

func nameOffset(at place) int64 { return int64(at.slab())*slabNameSize + int64(at.slot())*nameSize }

func (f names) write(at place, n name) error {
	b := n.encode(at)
	_, err := f.file.WriteAt(b[:], nameOffset(at))
	return err
}

func (f names) read(at place) (name, bool) {
	var b [nameSize]byte
	if _, err := f.file.ReadAt(b[:], nameOffset(at)); err != nil {
		return name{}, false
	}
	return decodeName(b[:], at)
}

// slab fills buf with the records of a slab's first slots; what the file does
// not have, or the disk does not give, is zeros.
func (f names) slab(number, slots int, buf []byte) []byte {
	buf = buf[:slots*nameSize]
	n, err := f.file.ReadAt(buf, nameOffset(newPlace(number, 0)))
	if err != nil && err != io.EOF {
		n = 0
	}
	clear(buf[n:])
	return buf
}

// slabs is how many slabs the file knows of.
func (f names) slabs() int {
	size, err := f.file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0
	}
	return int(min((size+slabNameSize-1)/slabNameSize, slabsMax))
}

// blank removes the record of a slot that is free: an index that is made anew must
// not give an object back what it might do when it was here before.
func (f names) blank(at place) {
	var none [nameSize]byte
	f.file.WriteAt(none[:], nameOffset(at)) // a disk that fails so fails the next Put
}

// forget removes the records of a slab, before another class takes it.
func (f names) forget(number int) {
	off := nameOffset(newPlace(number, 0))
	if punchHole(f.file, off, slabNameSize) != nil {
		f.file.WriteAt(make([]byte, slabNameSize), off) // a stale name costs a check, no more
	}
}
