package wire

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/grangemesh/grange/origin/content"
)

// Codec says how a body is stored in its frame.
type Codec uint8

// The codecs.
const (
	CodecRaw Codec = iota
	CodecZstd
)

// DataSize is the length of the fixed part of a Data payload, in bytes.
const DataSize = 21

const dataAck = 1

// Spare is what the sender of an answer has left for who asks next, in KiB a second; 0 where
// nothing is known of it.
type Spare uint32

// SpareOf rounds down bytes a second.
func SpareOf(bytes int64) Spare { return Spare(min(bytes>>10, math.MaxUint32)) }

// Bytes is Spare in bytes a second.
func (s Spare) Bytes() int64 { return int64(s) << 10 }

// Data is the head of a Data frame: body and page follow it on the stream.
type Data struct {
	Index uint64
	// Raw is the length of the object, Stored that of the body as sent and Page
	// that of the locator page, in bytes.
	Raw, Stored, Page int
	Codec             Codec
	Spare             Spare
	// Ack asks the receiver to acknowledge all that has arrived.
	Ack bool
}

// Size returns the length of the whole frame, in bytes.
func (d Data) Size() int { return HeaderSize + DataSize + d.Stored + d.Page }

// Append appends the header and the fixed part; body and page go after it. It
// panics on lengths outside the limits.
func (d Data) Append(b []byte, id uint32) []byte {
	h := Header{Type: TypeData, ID: id, Length: DataSize + d.Stored + d.Page}
	if err := d.validate(); err != nil {
		panic("wire: " + err.Error())
	}
	if d.Ack {
		h.Flags = dataAck
	}
	b = binary.BigEndian.AppendUint64(h.Append(b), d.Index)
	b = binary.BigEndian.AppendUint32(b, uint32(d.Raw))
	b = binary.BigEndian.AppendUint32(b, uint32(d.Page))
	return binary.BigEndian.AppendUint32(append(b, byte(d.Codec)), uint32(d.Spare))
}

// DecodeData reads the fixed part of the Data frame that h begins; anything but
// the head of a frame within the limits is ErrCorrupt.
func DecodeData(h Header, b [DataSize]byte) (Data, error) {
	d := Data{
		Index: binary.BigEndian.Uint64(b[:]), Raw: int(binary.BigEndian.Uint32(b[8:])),
		Page: int(binary.BigEndian.Uint32(b[12:])), Codec: Codec(b[16]), Ack: h.Flags&dataAck != 0,
		Spare: Spare(binary.BigEndian.Uint32(b[17:])),
	}
	d.Stored = h.Length - DataSize - d.Page
	return d, d.validate()
}

func (d Data) validate() error {
	switch {
	case d.Index > IndexMax, d.Raw < 1 || d.Raw > BodySizeMax, d.Page < 0 || d.Page > PageSizeMax, d.Stored < 1,
		d.Codec == CodecRaw && d.Stored != d.Raw, d.Codec == CodecZstd && d.Stored >= d.Raw, d.Codec > CodecZstd:
		return fmt.Errorf("data of index %d: %w: codec %d, %d bytes raw, %d stored, page of %d", d.Index, content.ErrCorrupt, d.Codec, d.Raw, d.Stored, d.Page)
	}
	return nil
}

func appendIndexes(b []byte, indexes []uint64) []byte {
	at, ranges, end := len(b), 0, uint64(0)
	b = append(b, 0, 0)
	for i := 0; i < len(indexes); ranges++ {
		first := indexes[i]
		n := uint64(1)
		for i++; i < len(indexes) && indexes[i] == first+n; i++ {
			n++
		}
		if first < end || first+n-1 > IndexMax {
			panic(fmt.Sprintf("wire: indexes don't rise at %d, or are above %d", first, uint64(IndexMax)))
		}
		b = binary.AppendUvarint(b, first-end)
		b = binary.AppendUvarint(b, n)
		end = first + n
	}
	if len(indexes) == 0 || len(indexes) > IndexesMax {
		panic(fmt.Sprintf("wire: %d indexes; want 1 to %d", len(indexes), IndexesMax))
	}
	binary.BigEndian.PutUint16(b[at:], uint16(ranges))
	return b
}

func decodeIndexes(b []byte) ([]uint64, error) {
	ranges, rest := int(binary.BigEndian.Uint16(b)), b[2:]
	if ranges == 0 || ranges > IndexesMax {
		return nil, fmt.Errorf("%w: %d ranges of indexes; want 1 to %d", content.ErrCorrupt, ranges, IndexesMax)
	}
	var indexes []uint64
	end := uint64(0)
	for i := range ranges {
		gap, k := uvarint(rest)
		n, l := uvarint(rest[k:])
		if k == 0 || l == 0 || n == 0 || i > 0 && gap == 0 || uint64(len(indexes))+n > IndexesMax || end+gap+n-1 > IndexMax {
			return nil, fmt.Errorf("%w: range %d of indexes: %d after %d, %d long", content.ErrCorrupt, i, gap, end, n)
		}
		for j := range n {
			indexes = append(indexes, end+gap+j)
		}
		rest, end = rest[k+l:], end+gap+n
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the indexes", content.ErrCorrupt, len(rest))
	}
	return indexes, nil
}

// uvarint reads a varint of at most 32 bits in its shortest form; n is 0 for others.
func uvarint(b []byte) (v uint64, n int) {
	v, n = binary.Uvarint(b)
	if n <= 0 || v > IndexMax || n > 1 && b[n-1] == 0 {
		return 0, 0
	}
	return v, n
}
