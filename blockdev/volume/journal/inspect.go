package journal

import (
	"cmp"
	"encoding/binary"
	"errors"
	"os"

	"github.com/grangemesh/grange/blockdev/volume/extents"
)

// Inspect reads the first size bytes of a segment and returns the seq of the last entry
// that is whole, with its data, and where it ends: behind it lies what a crash has left of
// others. Of a merged segment of which anything is missing nothing is whole, and of one
// without a whole header there is an ErrCorrupt.
func Inspect(f *os.File, size int64) (h Header, seq uint64, end int64, err error) {
	if h, err = ReadHeader(f); err != nil {
		return h, 0, 0, err
	}
	seed := Seed(h.Volume, h.Number)
	seq, end = h.After.Seq, HeaderSize
	table := int64(-1)
	if h.Merged > 0 {
		if _, table, err = ReadTable(f, seed, size); err != nil {
			return h, seq, 0, nil
		}
	}
	var w Window
	w.Open(f, size, seed)
	for end < size && end != table {
		e, _, err := w.Entry(end)
		if err != nil && !errors.Is(err, ErrNoEntry) {
			return h, 0, 0, err
		}
		if err != nil || e.Seq != cmp.Or(h.Merged, seq+1) {
			break
		}
		seq, end = e.Seq, end+e.Size()
	}
	switch {
	case h.Merged == 0:
		return h, seq, end, nil
	case end == table:
		return h, h.Merged, size, nil
	}
	return h, h.After.Seq, 0, nil
}

// intact reports whether the data of an entry, which b has whole, are those that it was made of.
func (e Entry) intact(b []byte) bool {
	data := b[e.DataOffset():]
	for u := range e.Units() {
		if binary.LittleEndian.Uint32(b[extents.EntryHeader+4*u:]) != UnitSum(data, u) {
			return false
		}
	}
	return true
}
