package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/origin/content"
)

const (
	tableMagic  = "GRT\x01"
	TableHeader = 16
	TableFooter = 16
	RecordSize  = 32
	// TableMax bounds the extents of a segment's table: 4 MiB. One that was split more
	// often has none, and is read whole.
	TableMax = 1 << 17
	// MergedMax bounds those of a merged segment: 32 MiB, which a start holds in memory.
	MergedMax = 1 << 20
)

// Table is what a segment that is full has changed: its extents that no later entry of
// it has overwritten, and the seq of its last entry.
type Table struct {
	Seq     uint64
	Extents []extents.Extent
}

// Encode lays a table out that begins at off of its segment; see the package comment.
func (t Table) Encode(seed uint32, off int64) []byte {
	b := make([]byte, 0, TableHeader+len(t.Extents)*RecordSize+TableFooter)
	b = append(b, tableMagic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.Extents)))
	b = binary.LittleEndian.AppendUint64(b, t.Seq)
	for _, e := range t.Extents {
		b = binary.LittleEndian.AppendUint64(b, e.Start)
		b = binary.LittleEndian.AppendUint64(b, uint64(e.Data))
		for _, n := range []uint32{e.N, e.Before, e.Entry, e.Crc} {
			b = binary.LittleEndian.AppendUint32(b, n)
		}
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(off))
	return Summed(seed, append(b, tableMagic...))
}

// ErrNoTable says that a segment has no table that is whole.
var ErrNoTable = errors.New("no table")

// ReadTable reads the table at the end of a segment of that size, and says where it
// begins. ErrNoTable means that there is none that is whole.
func ReadTable(f *os.File, seed uint32, size int64) (t Table, off int64, err error) {
	var foot [TableFooter]byte
	if size < HeaderSize+TableHeader+TableFooter {
		return t, 0, ErrNoTable
	}
	if _, err := f.ReadAt(foot[:], size-TableFooter); err != nil {
		return t, 0, err
	}
	off = int64(binary.LittleEndian.Uint64(foot[:]))
	if string(foot[8:12]) != tableMagic || off < HeaderSize || off > size-TableHeader-TableFooter ||
		size-off > TableHeader+MergedMax*RecordSize+TableFooter {
		return t, 0, ErrNoTable
	}
	b := make([]byte, size-off)
	if _, err := f.ReadAt(b, off); err != nil {
		return t, 0, err
	}
	t, err = decodeTable(seed, b, off)
	return t, off, err
}

// decodeTable checks a table that begins at off of its segment.
func decodeTable(seed uint32, b []byte, off int64) (t Table, err error) {
	if len(b) < TableHeader+TableFooter || !Whole(seed, b, tableMagic) {
		return Table{}, ErrNoTable
	}
	n := int(binary.LittleEndian.Uint32(b[4:]))
	if n > MergedMax || len(b) != TableHeader+n*RecordSize+TableFooter || int64(binary.LittleEndian.Uint64(b[len(b)-TableFooter:])) != off {
		return Table{}, ErrNoTable
	}
	t = Table{Seq: binary.LittleEndian.Uint64(b[8:]), Extents: make([]extents.Extent, n)}
	for i := range t.Extents {
		r := b[TableHeader+i*RecordSize:]
		e := extents.Extent{
			Start: binary.LittleEndian.Uint64(r), Data: int64(binary.LittleEndian.Uint64(r[8:])), N: binary.LittleEndian.Uint32(r[16:]),
			Before: binary.LittleEndian.Uint32(r[20:]), Entry: binary.LittleEndian.Uint32(r[24:]), Crc: binary.LittleEndian.Uint32(r[28:]),
		}
		if !sound(e, off) {
			return Table{}, fmt.Errorf("extent %d of a table: %w", i, content.ErrCorrupt)
		}
		t.Extents[i] = e
	}
	return t, nil
}

// sound reports whether an extent can be one of a segment whose entries end at end.
func sound(e extents.Extent, end int64) bool {
	const sectors = content.SizeMax / extents.SectorSize
	if e.N == 0 || e.Start > sectors || uint64(e.N) > sectors-e.Start {
		return false
	}
	return e.Data == 0 || e.Entry <= WriteMax/extents.SectorSize && uint64(e.Before)+uint64(e.N) <= uint64(e.Entry) &&
		e.Data >= HeaderSize+extents.EntryHeader && e.Data <= end && end-e.Data >= int64(e.N)*extents.SectorSize
}
