package volume

// cursor returns extents by where they start; ok is false behind the last one.
type cursor func() (e extent, ok bool, err error)

// all returns the extents of the map, which is not to change meanwhile.
func (m *extentMap) all() cursor {
	page, i := 0, 0
	return func() (extent, bool, error) {
		for ; page < len(m.pages); page, i = page+1, 0 {
			if i < len(m.pages[page]) {
				i++
				return m.pages[page][i-1], true, nil
			}
		}
		return extent{}, false, nil
	}
}

// size is what the map takes in memory, in bytes.
func (m *extentMap) size() int64 { return int64(len(m.pages)) * pageMax * extentBytes }

// overlay lays newer extents over older ones.
func overlay(newer, older cursor) cursor {
	var a, b extent
	var more, rest bool // a, b are there
	begun := false
	return func() (e extent, ok bool, err error) {
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
			return extent{}, false, nil
		case rest && (!more || b.start < a.start):
			e = b
			if more && b.end() > a.start { // what lies under a goes
				e, b = b.until(a.start), b.from(a.start)
				return e, true, nil
			}
			b, rest, err = older()
			return e, true, err
		}
		e = a
		for rest && b.start < e.end() && err == nil {
			if b.end() > e.end() {
				b = b.from(e.end())
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
