// Package extents says where the newest bytes of a disk lie in its journal: maps of that in
// memory, and lists in files.
package extents

import (
	"slices"
	"sort"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

const (
	SectorSize = content.SectorSize
	// Unit is how much data one sum covers: what guests mostly write and read.
	Unit        = 4096
	UnitSectors = Unit / SectorSize
	// EntryHeader is what a range costs in a segment beside its data and 4 bytes for each
	// unit of that.
	EntryHeader = 40
)

// Extent is a range of the disk whose newest bytes are in one journal entry, or
// are zeros. 40 bytes.
type Extent struct {
	Start  uint64 // sector
	N      uint32 // sectors
	Seg    uint32 // slot of the segment, or SegBad
	Data   int64  // offset in the segment of the first byte; 0 when the range reads as zeros
	Before uint32 // sectors of the entry's data before data
	Entry  uint32 // sectors of the whole entry; of zeros that are a hole 0
	Crc    uint32 // of an entry of one unit: its sum
}

const SegBad = 1<<32 - 1 // the range was lost to corruption

// End is the sector behind it.
func (e Extent) End() uint64 { return e.Start + uint64(e.N) }

// Zeros reports whether it reads as zeros.
func (e Extent) Zeros() bool { return e.Data == 0 && e.Seg != SegBad }

// Stored reports whether it has data in a segment.
func (e Extent) Stored() bool { return e.Data != 0 }

// cost is what the extent takes in a segment of its own.
func (e Extent) cost() int64 {
	if !e.Stored() {
		return EntryHeader
	}
	return EntryHeader + 4*int64((e.N+UnitSectors-1)/UnitSectors) + int64(e.N)*SectorSize
}

// State is what the range is to a client of the device.
func (e Extent) State() blockdev.State {
	switch {
	case !e.Zeros():
		return blockdev.Data
	case e.Entry > 0:
		return blockdev.Zeros
	}
	return blockdev.Hole
}

// From is the part from a sector on.
func (e Extent) From(s uint64) Extent {
	if s > e.Start {
		skip := uint32(s - e.Start)
		e.Start, e.N = s, e.N-skip
		if e.Stored() {
			e.Data, e.Before = e.Data+int64(skip)*SectorSize, e.Before+skip
		}
	}
	return e
}

func (e Extent) until(s uint64) Extent {
	if s < e.End() {
		e.N = uint32(s - e.Start)
	}
	return e
}

// pageMax is how many extents a page of the map holds before it is split: an
// insertion moves half of them, some 5 KiB.
const pageMax = 256

// Map is a sorted list of extents that don't overlap, in pages. Its owner
// locks.
type Map struct {
	pages [][]Extent
	Usage
}

// Usage is what extents use.
type Usage struct {
	Dirty int64   // sectors with data
	Bytes int64   // what the extents have in segments
	live  []int64 // the same by slot
}

// LiveIn is how many bytes of a segment are in use.
func (u *Usage) LiveIn(slot uint32) int64 {
	if int(slot) >= len(u.live) {
		return 0
	}
	return u.live[slot]
}

// Account counts an extent that comes, or goes.
func (u *Usage) Account(e Extent, sign int64) {
	if e.Stored() {
		u.Dirty += sign * int64(e.N)
	}
	if e.Seg == SegBad {
		return
	}
	if int(e.Seg) >= len(u.live) {
		u.live = append(u.live, make([]int64, int(e.Seg)+1-len(u.live))...)
	}
	u.live[e.Seg] += sign * e.cost()
	u.Bytes += sign * e.cost()
}

// Of returns the extents whose segment has a slot, at most limit and one.
func (m *Map) Of(slot uint32, limit int) (out []Extent) {
	for _, page := range m.pages {
		for _, e := range page {
			if e.Seg == slot && len(out) <= limit {
				out = append(out, e)
			}
		}
	}
	return out
}

// page returns the index of the page where an extent that ends behind s would
// be.
func (m *Map) page(s uint64) int {
	i := sort.Search(len(m.pages), func(i int) bool { return m.pages[i][0].Start > s })
	return max(i-1, 0)
}

// At returns the extent that covers sector s, or the next one behind it.
func (m *Map) At(s uint64) (e Extent, ok bool) {
	for p := m.page(s); p < len(m.pages); p++ {
		page := m.pages[p]
		lo, hi := 0, len(page)
		for lo < hi {
			if mid := (lo + hi) / 2; page[mid].End() > s {
				hi = mid
			} else {
				lo = mid + 1
			}
		}
		if lo < len(page) {
			return page[lo], true
		}
	}
	return Extent{}, false
}

// Put lays an extent over the map.
func (m *Map) Put(e Extent) {
	if i, page, ok := m.exact(e); ok { // overwritten where it lies, as a guest does most
		m.Account(page[i], -1)
		m.Account(e, 1)
		page[i] = e
		return
	}
	var left []Extent // what remains of covered extents
	empty := false
	for p := m.page(e.Start); p < len(m.pages); p++ {
		page := m.pages[p]
		lo := sort.Search(len(page), func(i int) bool { return page[i].End() > e.Start })
		hi := lo
		for hi < len(page) && page[hi].Start < e.End() {
			old := page[hi]
			if old.Start < e.Start {
				left = append(left, old.until(e.Start))
			}
			if old.End() > e.End() {
				left = append(left, old.From(e.End()))
			}
			m.Account(old, -1)
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
		m.pages = slices.DeleteFunc(m.pages, func(page []Extent) bool { return len(page) == 0 })
	}
	for _, part := range left {
		m.add(part)
	}
	m.add(e)
}

// exact finds an extent of just the range of e.
func (m *Map) exact(e Extent) (i int, page []Extent, ok bool) {
	if len(m.pages) == 0 {
		return 0, nil, false
	}
	page = m.pages[m.page(e.Start)]
	i = sort.Search(len(page), func(i int) bool { return page[i].Start >= e.Start })
	return i, page, i < len(page) && page[i].Start == e.Start && page[i].N == e.N
}

// add inserts an extent that overlaps nothing.
func (m *Map) add(e Extent) {
	m.Account(e, 1)
	if len(m.pages) == 0 {
		m.pages = [][]Extent{append(make([]Extent, 0, pageMax), e)}
		return
	}
	p := m.page(e.Start)
	page := m.pages[p]
	i := sort.Search(len(page), func(i int) bool { return page[i].Start > e.Start })
	switch {
	case len(page) < pageMax:
		m.pages[p] = slices.Insert(page, i, e)
		return
	case i == pageMax && p == len(m.pages)-1: // in order
		m.pages = append(m.pages, append(make([]Extent, 0, pageMax), e))
		return
	}
	half := append(make([]Extent, 0, pageMax), page[pageMax/2:]...)
	m.pages[p] = page[:pageMax/2]
	m.pages = slices.Insert(m.pages, p+1, half)
	if i > pageMax/2 {
		m.pages[p+1] = slices.Insert(half, i-pageMax/2, e)
	} else {
		m.pages[p] = slices.Insert(m.pages[p], i, e)
	}
}
