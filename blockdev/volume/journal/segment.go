package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/origin/content"
)

const (
	segmentMagic = "GRSEG\x00\x00\x02"
	HeaderSize   = 80
	EntryMagic   = "GRE\x01"

	KindData = 1
	KindZero = 2
	KindMark = 3
	KindKeep = 4

	// VectorMax bounds the parts of WriteVector: a system takes 1,024.
	VectorMax = 128
	// WriteMax bounds the data of one entry; a larger write is several.
	WriteMax = 1 << 20
	// HeadMax is the most that the head of an entry takes, with its sums.
	HeadMax = extents.EntryHeader + 4*(WriteMax/extents.Unit)
	Suffix  = ".seg"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // the package keeps the one table

// Sum is the sum of one unit of data.
func Sum(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }

// Seed is what the sums of a segment's entries and table begin with, and with number 0
// those of the other files: a guest may well have the bytes of a journal on its disk, of
// another volume or of its own, and they are none where they lie there.
func Seed(id [16]byte, number uint64) uint32 {
	return Sum(binary.LittleEndian.AppendUint64(id[:], number))
}

// UnitSum is that of a unit of more data.
func UnitSum(data []byte, u int) uint32 {
	return Sum(data[u*extents.Unit : min((u+1)*extents.Unit, len(data))])
}

// Summed is b with its sum behind it.
func Summed(seed uint32, b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Update(seed, castagnoli(), b))
}

// Whole reports whether b begins with a magic and ends with its sum.
func Whole(seed uint32, b []byte, magic string) bool {
	end := len(b) - 4
	return end >= 0 && bytes.HasPrefix(b[:end], []byte(magic)) && binary.LittleEndian.Uint32(b[end:]) == crc32.Update(seed, castagnoli(), b[:end])
}

// Entry is the head of a journal entry.
type Entry struct {
	Kind    byte
	Seq     uint64
	Durable uint64
	Start   uint64 // sector
	Sectors uint32
}

// DataEntry is one of n bytes at off of the disk.
func DataEntry(off int64, n int) Entry {
	return Entry{Kind: KindData, Start: uint64(off / extents.SectorSize), Sectors: uint32(n / extents.SectorSize)}
}

// Units is how many sums the entry has.
func (e Entry) Units() int {
	if e.Kind != KindData {
		return 0
	}
	return (int(e.Sectors) + extents.UnitSectors - 1) / extents.UnitSectors
}

// DataOffset is where the data begins, from the start of the entry.
func (e Entry) DataOffset() int64 { return extents.EntryHeader + 4*int64(e.Units()) }

// Size is what the entry takes in a segment.
func (e Entry) Size() int64 {
	if e.Kind != KindData {
		return extents.EntryHeader
	}
	return e.DataOffset() + int64(e.Sectors)*extents.SectorSize
}

// Extent is what an entry at off of the segment in a slot says of the disk; sums are
// those of its data.
func (e Entry) Extent(slot uint32, off int64, sums []byte) extents.Extent {
	x := extents.Extent{Start: e.Start, N: e.Sectors, Seg: slot}
	if e.Kind == KindData {
		x.Data = off + e.DataOffset()
	}
	if e.Kind != KindZero {
		x.Entry = e.Sectors
	}
	if e.Units() == 1 {
		x.Crc = binary.LittleEndian.Uint32(sums)
	}
	return x
}

// Seal makes an entry's head: b has room for it, and the sums of the data behind that.
func (e Entry) Seal(seed uint32, b []byte) {
	copy(b, EntryMagic)
	b[4], b[5], b[6], b[7] = e.Kind, 0, 0, 0
	binary.LittleEndian.PutUint64(b[8:], e.Seq)
	binary.LittleEndian.PutUint64(b[16:], e.Durable)
	binary.LittleEndian.PutUint64(b[24:], e.Start)
	binary.LittleEndian.PutUint32(b[32:], e.Sectors)
	binary.LittleEndian.PutUint32(b[36:], headSum(seed, b, b[extents.EntryHeader:e.DataOffset()]))
}

// SumUnits puts the sum of each unit of data into sums.
func SumUnits(sums, data []byte) {
	for u := range (len(data) + extents.Unit - 1) / extents.Unit {
		binary.LittleEndian.PutUint32(sums[4*u:], UnitSum(data, u))
	}
}

func headSum(seed uint32, head, sums []byte) uint32 {
	return crc32.Update(crc32.Update(seed, castagnoli(), head[:36]), castagnoli(), sums)
}

// DecodeEntry reads the head of an entry from b, which holds at least the head
// and the sums if it is whole. An error says why it is none.
func DecodeEntry(seed uint32, b []byte) (Entry, error) {
	if len(b) < extents.EntryHeader || string(b[:4]) != EntryMagic {
		return Entry{}, errors.New("no entry")
	}
	e := Entry{
		Kind: b[4], Seq: binary.LittleEndian.Uint64(b[8:]), Durable: binary.LittleEndian.Uint64(b[16:]),
		Start: binary.LittleEndian.Uint64(b[24:]), Sectors: binary.LittleEndian.Uint32(b[32:]),
	}
	switch {
	case e.Kind < KindData || e.Kind > KindKeep || b[5]|b[6]|b[7] != 0:
		return Entry{}, fmt.Errorf("kind %d", e.Kind)
	case e.Kind == KindData && (e.Sectors == 0 || e.Sectors > WriteMax/extents.SectorSize):
		return Entry{}, fmt.Errorf("%d sectors of data", e.Sectors)
	case e.Start > content.SizeMax/extents.SectorSize || e.Start+uint64(e.Sectors) > content.SizeMax/extents.SectorSize:
		return Entry{}, fmt.Errorf("sectors %d+%d", e.Start, e.Sectors)
	case e.Seq == 0 || e.Durable >= e.Seq:
		return Entry{}, fmt.Errorf("seq %d, durable %d", e.Seq, e.Durable)
	case int64(len(b)) < e.DataOffset():
		return Entry{}, errors.New("cut short")
	case headSum(seed, b, b[extents.EntryHeader:e.DataOffset()]) != binary.LittleEndian.Uint32(b[36:]):
		return Entry{}, errors.New("the checksum of its head does not match")
	}
	return e, nil
}

// Header is what a segment file says of itself first.
type Header struct {
	Volume content.VolumeID
	Epoch  uint64
	Number uint64
	After  content.Position // what it follows
	// Merged is the seq of the last entry that the segment stands for, where entries
	// that are not needed any more were left out of it; else 0.
	Merged uint64
	// Needs is the seq of the last of those that made these needless: a journal that does
	// not reach it is not whole.
	Needs uint64
}

// Encode returns the first HeaderSize bytes of a segment.
func (h Header) Encode() []byte {
	b := append(make([]byte, 0, HeaderSize), segmentMagic...)
	b = append(b, h.Volume[:]...)
	for _, x := range [...]uint64{h.Epoch, h.Number, h.After.Number, h.After.Seq, h.Merged, h.Needs} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return Summed(0, binary.LittleEndian.AppendUint32(b, 0))
}

// DecodeHeader reads the header with which b begins; anything else is ErrCorrupt.
func DecodeHeader(b []byte) (h Header, err error) {
	none := fmt.Errorf("%w: no header of a segment", content.ErrCorrupt)
	if len(b) < HeaderSize || !Whole(0, b[:HeaderSize], segmentMagic) || binary.LittleEndian.Uint32(b[72:]) != 0 {
		return h, none
	}
	h.Volume = content.VolumeID(b[8:24])
	for i, x := range []*uint64{&h.Epoch, &h.Number, &h.After.Number, &h.After.Seq, &h.Merged, &h.Needs} {
		*x = binary.LittleEndian.Uint64(b[24+8*i:])
	}
	follows := h.After.Number+1 == h.Number && h.Needs == 0
	if h.Merged > 0 {
		follows = h.After.Number < h.Number && h.Merged > h.After.Seq && h.Needs >= h.Merged
	}
	if !follows {
		return h, none
	}
	return h, nil
}

// ReadHeader reads the header of a segment's file. Without a whole one it is ErrCorrupt.
func ReadHeader(f io.ReaderAt) (Header, error) {
	b := make([]byte, HeaderSize)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return Header{}, err
	}
	return DecodeHeader(b)
}

// Name is what its file is called.
func (h Header) Name() string { return fmt.Sprintf("%016x-%016x%s", h.Epoch, h.Number, Suffix) }

// ParseName reads the name of a segment's file.
func ParseName(name string) (epoch, number uint64, ok bool) {
	if _, err := fmt.Sscanf(name, "%x-%x", &epoch, &number); err != nil {
		return 0, 0, false
	}
	return epoch, number, name == Header{Epoch: epoch, Number: number}.Name()
}
