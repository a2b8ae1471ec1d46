package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/origin/content"
)

const (
	sectorSize = content.SectorSize
	// unit is how much data one sum covers: what guests mostly write and read.
	unit        = 4096
	unitSectors = unit / sectorSize

	segmentMagic  = "GRSEG\x00\x00\x01"
	segmentHeader = 64
	entryMagic    = "GRE\x01"
	entryHeader   = 40

	kindData = 1
	kindZero = 2
	kindMark = 3
	kindKeep = 4

	// segmentMax is the size at which a segment is closed: what a fold or a holder
	// takes at a time.
	segmentMax = 64 << 20
	// writeMax bounds the data of one entry; a larger write is several.
	writeMax = 1 << 20
	// zeroMax bounds the sectors of one entry of zeros.
	zeroMax = 1 << 31
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

// seal makes of b, which has room for the entry and its data in place, the entry.
func (e entry) seal(seed uint32, b []byte) {
	head, sums, data := b[:entryHeader], b[entryHeader:e.dataOffset()], b[e.dataOffset():]
	copy(head, entryMagic)
	head[4], head[5], head[6], head[7] = e.kind, 0, 0, 0
	binary.LittleEndian.PutUint64(head[8:], e.seq)
	binary.LittleEndian.PutUint64(head[16:], e.durable)
	binary.LittleEndian.PutUint64(head[24:], e.start)
	binary.LittleEndian.PutUint32(head[32:], e.sectors)
	for u := range e.units() {
		binary.LittleEndian.PutUint32(sums[4*u:], unitSum(data, u))
	}
	binary.LittleEndian.PutUint32(head[36:], headSum(seed, head, sums))
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

// segment is one file of the journal.
type segment struct {
	number uint64
	slot   uint32 // where extents find it
	seed   uint32 // of its sums
	first  uint64 // seq of its first entry, or of what follows it
	file   *os.File
	size   int64
	sealed bool // it ends with its table, and nothing is added
	synced bool // as it is and will be, once another one follows
}

func segmentName(number uint64) string { return fmt.Sprintf("%016x.seg", number) }

func encodeSegment(id [16]byte, epoch, number, firstSeq uint64) []byte {
	b := make([]byte, segmentHeader)
	copy(b, segmentMagic)
	copy(b[8:], id[:])
	binary.LittleEndian.PutUint64(b[24:], epoch)
	binary.LittleEndian.PutUint64(b[32:], number)
	binary.LittleEndian.PutUint64(b[40:], firstSeq)
	return summed(0, b[:60])
}

// decodeSegment checks a header and returns the seq of the first entry.
func decodeSegment(b []byte, id [16]byte, number uint64) (firstSeq uint64, err error) {
	switch {
	case len(b) < segmentHeader || !whole(0, b, segmentMagic):
		return 0, errors.New("no segment")
	case [16]byte(b[8:24]) != id || binary.LittleEndian.Uint64(b[32:]) != number:
		return 0, errors.New("it belongs to another volume or place")
	}
	return binary.LittleEndian.Uint64(b[40:]), nil
}

// createSegment makes a segment file, without a slot; it is durable with the first sync of the
// folder and of itself.
func createSegment(dir string, id [16]byte, epoch, number, firstSeq uint64) (*segment, error) {
	f, err := os.OpenFile(filepath.Join(dir, segmentName(number)), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(encodeSegment(id, epoch, number, firstSeq), 0); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &segment{number: number, seed: seed(id, number), first: firstSeq, file: f, size: segmentHeader}, nil
}
