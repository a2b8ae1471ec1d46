package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/grangemesh/grange/origin/content"
)

const (
	tableMagic  = "GRT\x01"
	tableHeader = 16
	tableFooter = 16
	recordSize  = 32
	// tableMax bounds the extents of a segment's table: 4 MiB. One that was split more
	// often has none, and is read whole.
	tableMax = 1 << 17
	// mergedMax bounds those of a merged segment: 32 MiB, which a start holds in memory.
	mergedMax = 1 << 20
)

// table is what a segment that is full has changed: its extents that no later entry of
// it has overwritten, and the seq of its last entry.
type table struct {
	seq     uint64
	extents []extent
}

// encode lays a table out that begins at off of its segment; see the package comment.
func (t table) encode(seed uint32, off int64) []byte {
	b := make([]byte, 0, tableHeader+len(t.extents)*recordSize+tableFooter)
	b = append(b, tableMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.extents)))
	b = binary.LittleEndian.AppendUint64(b, t.seq)
	for _, e := range t.extents {
		b = binary.LittleEndian.AppendUint64(b, e.start)
		b = binary.LittleEndian.AppendUint64(b, uint64(e.data))
		for _, n := range []uint32{e.n, e.before, e.entry, e.crc} {
			b = binary.LittleEndian.AppendUint32(b, n)
		}
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(off))
	return summed(seed, append(b, tableMagic...))
}

var errNoTable = errors.New("no table")

// readTable reads the table at the end of a segment of that size, and says where it
// begins. errNoTable means that there is none that is whole.
func readTable(f *os.File, seed uint32, size int64) (t table, off int64, err error) {
	var foot [tableFooter]byte
	if size < segmentHeader+tableHeader+tableFooter {
		return t, 0, errNoTable
	}
	if _, err := f.ReadAt(foot[:], size-tableFooter); err != nil {
		return t, 0, err
	}
	off = int64(binary.LittleEndian.Uint64(foot[:]))
	if string(foot[8:12]) != tableMagic || off < segmentHeader || off > size-tableHeader-tableFooter ||
		size-off > tableHeader+mergedMax*recordSize+tableFooter {
		return t, 0, errNoTable
	}
	b := make([]byte, size-off)
	if _, err := f.ReadAt(b, off); err != nil {
		return t, 0, err
	}
	t, err = decodeTable(seed, b, off)
	return t, off, err
}

// decodeTable checks a table that begins at off of its segment.
func decodeTable(seed uint32, b []byte, off int64) (t table, err error) {
	if len(b) < tableHeader+tableFooter || !whole(seed, b, tableMagic) {
		return table{}, errNoTable
	}
	n := int(binary.LittleEndian.Uint32(b[4:]))
	if n > mergedMax || len(b) != tableHeader+n*recordSize+tableFooter || int64(binary.LittleEndian.Uint64(b[len(b)-tableFooter:])) != off {
		return table{}, errNoTable
	}
	t = table{seq: binary.LittleEndian.Uint64(b[8:]), extents: make([]extent, n)}
	for i := range t.extents {
		r := b[tableHeader+i*recordSize:]
		e := extent{
			start: binary.LittleEndian.Uint64(r), data: int64(binary.LittleEndian.Uint64(r[8:])), n: binary.LittleEndian.Uint32(r[16:]),
			before: binary.LittleEndian.Uint32(r[20:]), entry: binary.LittleEndian.Uint32(r[24:]), crc: binary.LittleEndian.Uint32(r[28:]),
		}
		if !sound(e, off) {
			return table{}, fmt.Errorf("extent %d of a table: %w", i, content.ErrCorrupt)
		}
		t.extents[i] = e
	}
	return t, nil
}

// sound reports whether an extent can be one of a segment whose entries end at end.
func sound(e extent, end int64) bool {
	const sectors = content.SizeMax / sectorSize
	if e.n == 0 || e.start > sectors || uint64(e.n) > sectors-e.start {
		return false
	}
	return e.data == 0 || e.entry <= writeMax/sectorSize && uint64(e.before)+uint64(e.n) <= uint64(e.entry) &&
		e.data >= segmentHeader+entryHeader && e.data <= end && end-e.data >= int64(e.n)*sectorSize
}
