package volume

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// HeaderSize is how long the header of a segment is, in bytes.
	HeaderSize = 72
	// SegmentSuffix ends the name of a segment's file.
	SegmentSuffix = ".seg"
)

// Header is what a segment says of itself first.
type Header struct {
	Volume        content.VolumeID
	Epoch, Number uint64
	// After is the position that it follows.
	After content.Position
	// Merged is the seq of the last entry that it stands for, where entries were left out of
	// it, so that it means nothing before it is whole; else 0.
	Merged uint64
}

// Name is what the segment's file is called.
func (h Header) Name() string { return fmt.Sprintf("%016x-%016x%s", h.Epoch, h.Number, SegmentSuffix) }

// DecodeHeader reads the header with which b begins; anything else is ErrCorrupt.
func DecodeHeader(b []byte) (h Header, err error) {
	if len(b) < HeaderSize || !bytes.HasPrefix(b, []byte("GRSEG\x00\x00\x02")) || !whole(0, b[:HeaderSize], "GRSEG\x00\x00\x02") {
		return h, fmt.Errorf("%w: no header of a segment", content.ErrCorrupt)
	}
	h.Volume = content.VolumeID(b[8:24])
	for i, x := range []*uint64{&h.Epoch, &h.Number, &h.After.Number, &h.After.Seq, &h.Merged} {
		*x = binary.LittleEndian.Uint64(b[24+8*i:])
	}
	return h, nil
}

func (h Header) encode() []byte {
	b := append(append(make([]byte, 0, HeaderSize), "GRSEG\x00\x00\x02"...), h.Volume[:]...)
	for _, x := range [...]uint64{h.Epoch, h.Number, h.After.Number, h.After.Seq, h.Merged} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return summed(0, binary.LittleEndian.AppendUint32(b, 0))
}

// Inspect reads the first size bytes of a segment and returns the seq of the last entry
// that is whole, with its data, and where it ends: behind it lies what a crash has left of
// others. Of a merged segment of which anything is missing nothing is whole, and of one
// without a whole header there is an ErrCorrupt.
func Inspect(f *os.File, size int64) (h Header, seq uint64, end int64, err error) {
	head := make([]byte, HeaderSize)
	if _, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		return h, 0, 0, err
	}
	if h, err = DecodeHeader(head); err != nil {
		return h, 0, 0, err
	}
	seq, end = h.After.Seq, HeaderSize
	table := int64(-1)
	if h.Merged > 0 {
		if _, table, err = readTable(f, seed(h.Volume, h.Number), size); err != nil {
			return h, seq, 0, nil
		}
	}
	buf := make([]byte, entryHeader+4*writeMax/unit+writeMax)
	for end < size && end != table {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-end)], end)
		if err != nil && err != io.EOF {
			return h, 0, 0, err
		}
		e, bad := decodeEntry(seed(h.Volume, h.Number), buf[:n])
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
