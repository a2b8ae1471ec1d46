package volume

import (
	"slices"
	"sort"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

const (
	sectorSize = content.SectorSize
	// unit is how much data one sum covers: what guests mostly write and read.
	unit        = 4096
	unitSectors = unit / sectorSize
	// entryHeader is what a range costs in a segment beside its data and 4 bytes for each
	// unit of that.
	entryHeader = 40
)

// extent is a range of the disk whose newest bytes are in one journal entry, or
// are zeros. 40 bytes.
type extent struct {
	start  uint64 // sector
	n      uint32 // sectors
	seg    uint32 // slot of the segment, or segBad
	data   int64  // offset in the segment of the first byte; 0 when the range reads as zeros
	before uint32 // sectors of the entry's data before data
	entry  uint32 // sectors of the whole entry; of zeros that are a hole 0
	crc    uint32 // of an entry of one unit: its sum
}

const segBad = 1<<32 - 1 // the range was lost to corruption

func (e extent) end() uint64  { return e.start + uint64(e.n) }
func (e extent) zeros() bool  { return e.data == 0 && e.seg != segBad }
func (e extent) stored() bool { return e.data != 0 }

// cost is what the extent takes in a segment of its own.
func (e extent) cost() int64 {
	if !e.stored() {
		return entryHeader
	}
	return entryHeader + 4*int64((e.n+unitSectors-1)/unitSectors) + int64(e.n)*sectorSize
}

func (e extent) state() blockdev.State {
	switch {
	case !e.zeros():
		return blockdev.Data
	case e.entry > 0:
		return blockdev.Zeros
	}
	return blockdev.Hole
}

func (e extent) from(s uint64) extent {
	if s > e.start {
		skip := uint32(s - e.start)
		e.start, e.n = s, e.n-skip
		if e.stored() {
			e.data, e.before = e.data+int64(skip)*sectorSize, e.before+skip
		}
	}
	return e
}

func (e extent) until(s uint64) extent {
	if s < e.end() {
		e.n = uint32(s - e.start)
	}
	return e
}

// pageMax is how many extents a page of the map holds before it is split: an
// insertion moves half of them, some 5 KiB.
const pageMax = 256

// extentMap is a sorted list of extents that don't overlap, in pages. Its owner
// locks.
type extentMap struct {
	pages [][]extent
	count int
	usage
}

// usage is what extents use.
type usage struct {
	dirty int64   // sectors with data
	bytes int64   // what the extents have in segments
	live  []int64 // the same by slot
}

// liveIn is how many bytes of a segment are in use.
func (u *usage) liveIn(slot uint32) int64 {
	if int(slot) >= len(u.live) {
		return 0
	}
	return u.live[slot]
}

// account counts an extent that comes, or goes.
func (u *usage) account(e extent, sign int64) {
	if e.stored() {
		u.dirty += sign * int64(e.n)
	}
	if e.seg == segBad {
		return
	}
	if int(e.seg) >= len(u.live) {
		u.live = append(u.live, make([]int64, int(e.seg)+1-len(u.live))...)
	}
	u.live[e.seg] += sign * e.cost()
	u.bytes += sign * e.cost()
}

// of returns the extents whose segment has a slot, at most limit and one.
func (m *extentMap) of(slot uint32, limit int) (out []extent) {
	for _, page := range m.pages {
		for _, e := range page {
			if e.seg == slot && len(out) <= limit {
				out = append(out, e)
			}
		}
	}
	return out
}

// page returns the index of the page where an extent that ends behind s would
// be.
func (m *extentMap) page(s uint64) int {
	i := sort.Search(len(m.pages), func(i int) bool { return m.pages[i][0].start > s })
	return max(i-1, 0)
}

// at returns the extent that covers sector s, or the next one behind it.
func (m *extentMap) at(s uint64) (e extent, ok bool) {
	for p := m.page(s); p < len(m.pages); p++ {
		page := m.pages[p]
		lo, hi := 0, len(page)
		for lo < hi {
			if mid := (lo + hi) / 2; page[mid].end() > s {
				hi = mid
			} else {
				lo = mid + 1
			}
		}
		if lo < len(page) {
			return page[lo], true
		}
	}
	return extent{}, false
}

func (m *extentMap) put(e extent) {
	if i, page, ok := m.exact(e); ok { // overwritten where it lies, as a guest does most
		m.account(page[i], -1)
		m.account(e, 1)
		page[i] = e
		return
	}
	var left []extent // what remains of covered extents
	empty := false
	for p := m.page(e.start); p < len(m.pages); p++ {
		page := m.pages[p]
		lo := sort.Search(len(page), func(i int) bool { return page[i].end() > e.start })
		hi := lo
		for hi < len(page) && page[hi].start < e.end() {
			old := page[hi]
			if old.start < e.start {
				left = append(left, old.until(e.start))
			}
			if old.end() > e.end() {
				left = append(left, old.from(e.end()))
			}
			m.account(old, -1)
			m.count--
			hi++
		}
		if hi > lo {
			m.pages[p] = slices.Delete(page, lo, hi)
			empty = empty || len(m.pages[p]) == 0
		}
		if hi < len(page) {
			break
		}
	}
	if empty {
		m.pages = slices.DeleteFunc(m.pages, func(page []extent) bool { return len(page) == 0 })
	}
	for _, part := range left {
		m.add(part)
	}
	m.add(e)
}

// exact finds an extent of just the range of e.
func (m *extentMap) exact(e extent) (i int, page []extent, ok bool) {
	if len(m.pages) == 0 {
		return 0, nil, false
	}
	page = m.pages[m.page(e.start)]
	i = sort.Search(len(page), func(i int) bool { return page[i].start >= e.start })
	return i, page, i < len(page) && page[i].start == e.start && page[i].n == e.n
}

// add inserts an extent that overlaps nothing.
func (m *extentMap) add(e extent) {
	m.account(e, 1)
	m.count++
	if len(m.pages) == 0 {
		m.pages = [][]extent{append(make([]extent, 0, pageMax), e)}
		return
	}
	p := m.page(e.start)
	page := m.pages[p]
	i := sort.Search(len(page), func(i int) bool { return page[i].start > e.start })
	switch {
	case len(page) < pageMax:
		m.pages[p] = slices.Insert(page, i, e)
		return
	case i == pageMax && p == len(m.pages)-1: // in order
		m.pages = append(m.pages, append(make([]extent, 0, pageMax), e))
		return
	}
	half := append(make([]extent, 0, pageMax), page[pageMax/2:]...)
	m.pages[p] = page[:pageMax/2]
	m.pages = slices.Insert(m.pages, p+1, half)
	if i > pageMax/2 {
		m.pages[p+1] = slices.Insert(half, i-pageMax/2, e)
	} else {
		m.pages[p] = slices.Insert(m.pages[p], i, e)
	}
}
