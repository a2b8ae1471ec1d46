package volume

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// HeaderSize is how long the header of a segment is, in bytes.
	HeaderSize = segmentHeader
	// SegmentSuffix ends the name of a segment's file.
	SegmentSuffix = segmentSuffix
)

// Header is what a segment says of itself first.
type Header struct {
	Volume        content.VolumeID
	Epoch, Number uint64
	// After is the position that it follows.
	After content.Position
	// Merged is the seq of the last entry that it stands for, where entries were left out of
	// it, so that it means nothing before it is whole; else 0. A journal that has it and does
	// not reach the entry Needs is not whole.
	Merged, Needs uint64
}

// Name is what the segment's file is called.
func (h Header) Name() string { return header{epoch: h.Epoch, number: h.Number}.name() }

// DecodeHeader reads the header with which b begins; anything else is ErrCorrupt.
func DecodeHeader(b []byte) (Header, error) {
	h, ok := decodeHeader(b)
	if !ok {
		return Header{}, fmt.Errorf("%w: no header of a segment", content.ErrCorrupt)
	}
	return Header{h.volume, h.epoch, h.number, h.after, h.merged, h.needs}, nil
}

// Inspect reads the first size bytes of a segment and returns the seq of the last entry
// that is whole, with its data, and where it ends: behind it lies what a crash has left of
// others. Of a merged segment of which anything is missing nothing is whole, and of one
// without a whole header there is an ErrCorrupt.
func Inspect(f *os.File, size int64) (h Header, seq uint64, end int64, err error) {
	buf := make([]byte, headMax+writeMax)
	if _, err := f.ReadAt(buf[:HeaderSize], 0); err != nil && err != io.EOF {
		return h, 0, 0, err
	}
	if h, err = DecodeHeader(buf[:HeaderSize]); err != nil {
		return h, 0, 0, err
	}
	seed := seed(h.Volume, h.Number)
	seq, end = h.After.Seq, HeaderSize
	table := int64(-1)
	if h.Merged > 0 {
		if _, table, err = readTable(f, seed, size); err != nil {
			return h, seq, 0, nil
		}
	}
	for end < size && end != table {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-end)], end)
		if err != nil && err != io.EOF {
			return h, 0, 0, err
		}
		e, bad := decodeEntry(seed, buf[:n])
		if bad != nil || int64(n) < e.size() || e.seq != cmp.Or(h.Merged, seq+1) || !e.intact(buf[:e.size()]) {
			break
		}
		seq, end = e.seq, end+e.size()
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
func (e entry) intact(b []byte) bool {
	data := b[e.dataOffset():]
	for u := range e.units() {
		if binary.LittleEndian.Uint32(b[entryHeader+4*u:]) != unitSum(data, u) {
			return false
		}
	}
	return true
}
