package extents

import "sort"

// Cursor returns extents by where they start; ok is false behind the last one.
type Cursor func() (e Extent, ok bool, err error)

// From returns the extents of the map, which is not to change meanwhile, from the one on that
// covers a sector, or comes next.
func (m *Map) From(s uint64) Cursor {
	page, i := m.page(s), 0
	if page < len(m.pages) {
		i = sort.Search(len(m.pages[page]), func(i int) bool { return m.pages[page][i].End() > s })
	}
	return func() (Extent, bool, error) {
		for ; page < len(m.pages); page, i = page+1, 0 {
			if i < len(m.pages[page]) {
				i++
				return m.pages[page][i-1], true, nil
			}
		}
		return Extent{}, false, nil
	}
}

// Size is what the map takes in memory, in bytes.
func (m *Map) Size() int64 { return int64(len(m.pages)) * pageMax * extentBytes }

// Overlay lays newer extents over older ones.
func Overlay(newer, older Cursor) Cursor {
	var a, b Extent
	var more, rest bool // a, b are there
	begun := false
	return func() (e Extent, ok bool, err error) {
		if !begun {
			begun = true
			if a, more, err = newer(); err != nil {
				return e, false, err
			}
			if b, rest, err = older(); err != nil {
				return e, false, err
			}
		}
		switch {
		case !more && !rest:
			return Extent{}, false, nil
		case rest && (!more || b.Start < a.Start):
			e = b
			if more && b.End() > a.Start { // what lies under a goes
				e, b = b.until(a.Start), b.From(a.Start)
				return e, true, nil
			}
			b, rest, err = older()
			return e, true, err
		}
		e = a
		for rest && b.Start < e.End() && err == nil {
			if b.End() > e.End() {
				b = b.From(e.End())
				break
			}
			b, rest, err = older()
		}
		if err == nil {
			a, more, err = newer()
		}
		return e, true, err
	}
}
