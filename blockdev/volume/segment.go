package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/grangemesh/grange/origin/content"
)

const (
	segmentMagic  = "GRSEG\x00\x00\x02"
	segmentHeader = 80
	entryMagic    = "GRE\x01"

	kindData = 1
	kindZero = 2
	kindMark = 3
	kindKeep = 4

	// writeMax bounds the data of one entry; a larger write is several.
	writeMax = 1 << 20
	// headMax is the most that the head of an entry takes, with its sums.
	headMax       = entryHeader + 4*(writeMax/unit)
	segmentSuffix = ".seg"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // the package keeps the one table

func sum(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }

// seed is what the sums of a segment's entries and table begin with, and with number 0
// those of the other files: a guest may well have the bytes of a journal on its disk, of
// another volume or of its own, and they are none where they lie there.
func seed(id [16]byte, number uint64) uint32 {
	return sum(binary.LittleEndian.AppendUint64(id[:], number))
}

func unitSum(data []byte, u int) uint32 { return sum(data[u*unit : min((u+1)*unit, len(data))]) }

func summed(seed uint32, b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Update(seed, castagnoli(), b))
}

// whole reports whether b begins with a magic and ends with its sum.
func whole(seed uint32, b []byte, magic string) bool {
	end := len(b) - 4
	return end >= 0 && bytes.HasPrefix(b[:end], []byte(magic)) && binary.LittleEndian.Uint32(b[end:]) == crc32.Update(seed, castagnoli(), b[:end])
}

// entry is the head of a journal entry.
type entry struct {
	kind    byte
	seq     uint64
	durable uint64
	start   uint64 // sector
	sectors uint32
}

// dataEntry is one of n bytes at off of the disk.
func dataEntry(off int64, n int) entry {
	return entry{kind: kindData, start: uint64(off / sectorSize), sectors: uint32(n / sectorSize)}
}

// units is how many sums the entry has.
func (e entry) units() int {
	if e.kind != kindData {
		return 0
	}
	return (int(e.sectors) + unitSectors - 1) / unitSectors
}

// dataOffset is where the data begins, from the start of the entry.
func (e entry) dataOffset() int64 { return entryHeader + 4*int64(e.units()) }

func (e entry) size() int64 {
	if e.kind != kindData {
		return entryHeader
	}
	return e.dataOffset() + int64(e.sectors)*sectorSize
}

// extent is what an entry at off of the segment in a slot says of the disk; sums are
// those of its data.
func (e entry) extent(slot uint32, off int64, sums []byte) extent {
	x := extent{start: e.start, n: e.sectors, seg: slot}
	if e.kind == kindData {
		x.data = off + e.dataOffset()
	}
	if e.kind != kindZero {
		x.entry = e.sectors
	}
	if e.units() == 1 {
		x.crc = binary.LittleEndian.Uint32(sums)
	}
	return x
}

// seal makes an entry's head: b has room for it, and the sums of the data behind that.
func (e entry) seal(seed uint32, b []byte) {
	copy(b, entryMagic)
	b[4], b[5], b[6], b[7] = e.kind, 0, 0, 0
	binary.LittleEndian.PutUint64(b[8:], e.seq)
	binary.LittleEndian.PutUint64(b[16:], e.durable)
	binary.LittleEndian.PutUint64(b[24:], e.start)
	binary.LittleEndian.PutUint32(b[32:], e.sectors)
	binary.LittleEndian.PutUint32(b[36:], headSum(seed, b, b[entryHeader:e.dataOffset()]))
}

// sumUnits puts the sum of each unit of data into sums.
func sumUnits(sums, data []byte) {
	for u := range (len(data) + unit - 1) / unit {
		binary.LittleEndian.PutUint32(sums[4*u:], unitSum(data, u))
	}
}

func headSum(seed uint32, head, sums []byte) uint32 {
	return crc32.Update(crc32.Update(seed, castagnoli(), head[:36]), castagnoli(), sums)
}

// decodeEntry reads the head of an entry from b, which holds at least the head
// and the sums if it is whole. An error says why it is none.
func decodeEntry(seed uint32, b []byte) (entry, error) {
	if len(b) < entryHeader || string(b[:4]) != entryMagic {
		return entry{}, errors.New("no entry")
	}
	e := entry{
		kind: b[4], seq: binary.LittleEndian.Uint64(b[8:]), durable: binary.LittleEndian.Uint64(b[16:]),
		start: binary.LittleEndian.Uint64(b[24:]), sectors: binary.LittleEndian.Uint32(b[32:]),
	}
	switch {
	case e.kind < kindData || e.kind > kindKeep || b[5]|b[6]|b[7] != 0:
		return entry{}, fmt.Errorf("kind %d", e.kind)
	case e.kind == kindData && (e.sectors == 0 || e.sectors > writeMax/sectorSize):
		return entry{}, fmt.Errorf("%d sectors of data", e.sectors)
	case e.start > content.SizeMax/sectorSize || e.start+uint64(e.sectors) > content.SizeMax/sectorSize:
		return entry{}, fmt.Errorf("sectors %d+%d", e.start, e.sectors)
	case e.seq == 0 || e.durable >= e.seq:
		return entry{}, fmt.Errorf("seq %d, durable %d", e.seq, e.durable)
	case int64(len(b)) < e.dataOffset():
		return entry{}, errors.New("cut short")
	case headSum(seed, b, b[entryHeader:e.dataOffset()]) != binary.LittleEndian.Uint32(b[36:]):
		return entry{}, errors.New("the checksum of its head does not match")
	}
	return e, nil
}

// header is what a segment file says of itself first.
type header struct {
	volume content.VolumeID
	epoch  uint64
	number uint64
	after  content.Position // what it follows
	// merged is the seq of the last entry that the segment stands for, where entries
	// that are not needed any more were left out of it; else 0.
	merged uint64
	// needs is the seq of the last of those that made these needless: a journal that does
	// not reach it is not whole.
	needs uint64
}

func (h header) encode() []byte {
	b := append(make([]byte, 0, segmentHeader), segmentMagic...)
	b = append(b, h.volume[:]...)
	for _, x := range [...]uint64{h.epoch, h.number, h.after.Number, h.after.Seq, h.merged, h.needs} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return summed(0, binary.LittleEndian.AppendUint32(b, 0))
}

func decodeHeader(b []byte) (h header, ok bool) {
	if len(b) < segmentHeader || !whole(0, b[:segmentHeader], segmentMagic) || binary.LittleEndian.Uint32(b[72:]) != 0 {
		return h, false
	}
	h.volume = content.VolumeID(b[8:24])
	for i, x := range []*uint64{&h.epoch, &h.number, &h.after.Number, &h.after.Seq, &h.merged, &h.needs} {
		*x = binary.LittleEndian.Uint64(b[24+8*i:])
	}
	if h.merged == 0 {
		return h, h.after.Number+1 == h.number && h.needs == 0
	}
	return h, h.after.Number < h.number && h.merged > h.after.Seq && h.needs >= h.merged
}

func (h header) name() string { return fmt.Sprintf("%016x-%016x%s", h.epoch, h.number, segmentSuffix) }

// numbered reads the name of a segment's file.
func numbered(name string) (epoch, number uint64, ok bool) {
	if _, err := fmt.Sscanf(name, "%x-%x", &epoch, &number); err != nil {
		return 0, 0, false
	}
	return epoch, number, name == header{epoch: epoch, number: number}.name()
}
