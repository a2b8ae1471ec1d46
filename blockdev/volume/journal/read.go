package journal

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
)

// ReadExtent fills p, which begins where e does and is within it, from its segment, and
// checks the sums of the units that it touches. Without wait it is extents.ErrCold where
// that takes a wait for the disk.
func ReadExtent(buffers *scratch.Pool, f *os.File, e extents.Extent, p []byte, wait bool) error {
	head := int(e.Before%extents.UnitSectors) * extents.SectorSize // of the first unit, before p
	first := int(e.Before / extents.UnitSectors)
	begin := e.Data - int64(head) // of the first unit touched
	entryBytes := int(e.Entry) * extents.SectorSize
	units := (head + len(p) + extents.Unit - 1) / extents.Unit
	span := min(units*extents.Unit, entryBytes-first*extents.Unit)
	whole := p
	if span > len(p) { // not whole units
		buf := buffers.Get(span)
		defer buffers.Put(buf)
		whole = *buf
	}
	if err := extents.ReadFile(f, whole, begin, wait); err != nil {
		return err
	}
	if span > len(p) {
		copy(p, whole[head:])
	}
	return check(buffers, f, e, whole, wait)
}

// check compares whole units, the first of which has where e begins, with the sums of their
// entry.
func check(buffers *scratch.Pool, f *os.File, e extents.Extent, b []byte, wait bool) error {
	first := int(e.Before / extents.UnitSectors)
	all := (int(e.Entry) + extents.UnitSectors - 1) / extents.UnitSectors
	if all == 1 {
		if Sum(b) != e.Crc {
			return rotten(f, e)
		}
		return nil
	}
	start := e.Data - int64(e.Before)*extents.SectorSize // of the entry's data
	units := (len(b) + extents.Unit - 1) / extents.Unit
	sums := buffers.Get(4 * units)
	defer buffers.Put(sums)
	at := start - 4*int64(all) + 4*int64(first)
	if err := extents.ReadFile(f, *sums, at, wait); err != nil {
		return err
	}
	for u := range units {
		if UnitSum(b, u) != binary.LittleEndian.Uint32((*sums)[4*u:]) {
			return rotten(f, e)
		}
	}
	return nil
}

func rotten(f *os.File, e extents.Extent) error {
	return fmt.Errorf("journal %s near %d: %w: the checksum of the data does not match", f.Name(), e.Data, content.ErrCorrupt)
}
