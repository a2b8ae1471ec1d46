package journal

import (
	"fmt"
	"io"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/origin/content"
)

// Merger writes a merged segment: entries of what is still needed, all with the seq of the
// last one that it stands for, and a table.
type Merger struct {
	Header
	seed  uint32
	out   io.Writer
	Off   int64
	table Table
	buf   []byte
}

// NewMerger begins a segment, which has a header for a merged one.
func NewMerger(h Header, out io.Writer) (*Merger, error) {
	m := &Merger{Header: h, seed: Seed(h.Volume, h.Number), out: out, table: Table{Seq: h.Merged}, buf: make([]byte, HeadMax+WriteMax)}
	return m, m.write(h.Encode())
}

func (m *Merger) write(b []byte) error {
	n, err := m.out.Write(b)
	m.Off += int64(n)
	return err
}

// Room returns where the data of an extent is to be put, before Add.
func (m *Merger) Room(e extents.Extent) []byte {
	if !e.Stored() {
		return nil
	}
	return m.buf[DataEntry(0, int(e.N)*extents.SectorSize).DataOffset():][:int(e.N)*extents.SectorSize]
}

// Add writes an extent, whose data is in place, and returns where it is now.
func (m *Merger) Add(e extents.Extent) (extents.Extent, error) {
	x := Entry{Kind: KindZero, Seq: m.Merged, Durable: m.Merged - 1, Start: e.Start, Sectors: e.N}
	switch {
	case e.Stored():
		x.Kind = KindData
	case e.Entry > 0:
		x.Kind = KindKeep
	}
	b := m.buf[:x.Size()]
	SumUnits(b[extents.EntryHeader:x.DataOffset()], b[x.DataOffset():])
	x.Seal(m.seed, b)
	now := x.Extent(0, m.Off, b[extents.EntryHeader:])
	if len(m.table.Extents) == MergedMax {
		return extents.Extent{}, fmt.Errorf("merge of more than %d ranges: %w: take less of the journal at a time", MergedMax, content.ErrInvalid)
	}
	m.table.Extents = append(m.table.Extents, now)
	return now, m.write(b)
}

// Finish writes the table.
func (m *Merger) Finish() error { return m.write(m.table.Encode(m.seed, m.Off)) }
