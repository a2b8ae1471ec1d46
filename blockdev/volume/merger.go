package volume

import (
	"fmt"
	"io"

	"github.com/grangemesh/grange/origin/content"
)

// merger writes a merged segment: entries of what is still needed, all with the seq of the
// last one that it stands for, and a table.
type merger struct {
	header
	seed  uint32
	out   io.Writer
	off   int64
	table table
	buf   []byte
}

func newMerger(h header, out io.Writer) (*merger, error) {
	m := &merger{header: h, seed: seed(h.volume, h.number), out: out, table: table{seq: h.merged}}
	return m, m.write(h.encode())
}

func (m *merger) write(b []byte) error {
	n, err := m.out.Write(b)
	m.off += int64(n)
	return err
}

// room returns where the data of an extent is to be put, before add.
func (m *merger) room(e extent) []byte {
	if !e.stored() {
		return nil
	}
	if m.buf == nil {
		m.buf = make([]byte, headMax+writeMax)
	}
	return m.buf[dataEntry(0, int(e.n)*sectorSize).dataOffset():][:int(e.n)*sectorSize]
}

// add writes an extent, whose data is in place, and returns where it is now.
func (m *merger) add(e extent) (extent, error) {
	x := entry{kind: kindZero, seq: m.merged, durable: m.merged - 1, start: e.start, sectors: e.n}
	switch {
	case e.stored():
		x.kind = kindData
	case e.entry > 0:
		x.kind = kindKeep
	}
	if m.buf == nil {
		m.buf = make([]byte, headMax+writeMax)
	}
	b := m.buf[:x.size()]
	sumUnits(b[entryHeader:x.dataOffset()], b[x.dataOffset():])
	x.seal(m.seed, b)
	now := x.extent(0, m.off, b[entryHeader:])
	if len(m.table.extents) == mergedMax {
		return extent{}, fmt.Errorf("merge of more than %d ranges: %w: take less of the journal at a time", mergedMax, content.ErrInvalid)
	}
	m.table.extents = append(m.table.extents, now)
	return now, m.write(b)
}

// finish writes the table.
func (m *merger) finish() error { return m.write(m.table.encode(m.seed, m.off)) }
