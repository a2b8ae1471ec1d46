package nbd

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

// A client that does not ask for the sizes of blocks may send requests of any bytes, and
// old ones do. The device takes whole blocks: a change of a part of one is read, changed
// and written while no other change to the export is made, so that none of those is lost.

// partial reports whether a request does not consist of whole blocks.
func (c *conn) partial(req request) bool {
	unit := uint64(c.device.Geometry().BlockSize)
	return req.command != cmdFlush && (req.offset|uint64(req.length))&(unit-1) != 0
}

// part returns how long the part of a range is that begins at off: what is no whole block,
// and lies in one, or all that are whole.
func (d *device) part(off, end int64) int64 {
	unit := int64(d.Geometry().BlockSize)
	next, lead := end&^(unit-1), off&(unit-1)
	if lead != 0 || next == off {
		next = min(off-lead+unit, end)
	}
	return next - off
}

func (d *device) readBytes(ctx context.Context, p []byte, off int64) error {
	unit := int64(d.Geometry().BlockSize)
	for n := int64(0); len(p) > 0; p, off = p[n:], off+n {
		if n = d.part(off, off+int64(len(p))); n%unit == 0 {
			if err := d.ReadAt(ctx, p[:n], off); err != nil {
				return err
			}
			continue
		}
		block, lead := make([]byte, unit), off&(unit-1)
		if err := d.ReadAt(ctx, block, off-lead); err != nil {
			return err
		}
		copy(p[:n], block[lead:])
	}
	return nil
}

// changeBytes makes a write, or zeroes, with parts of blocks.
func (c *conn) changeBytes(t *task) error {
	d, req, off := c.device, t.req, int64(t.req.offset)
	zeroes := req.command == cmdWriteZeroes
	if zeroes && req.flags&flagFastZero != 0 {
		return fmt.Errorf("zeroing parts of blocks is as slow as writing: %w", errors.ErrUnsupported)
	}
	unit := int64(d.Geometry().BlockSize)
	block, end := make([]byte, unit), off+int64(req.length)
	for at, n := off, int64(0); at < end; at += n { // what must come from afar comes before the others are held up
		if n = d.part(at, end); n%unit != 0 {
			if err := d.ReadAt(c.reading, block, at&^(unit-1)); err != nil {
				return err
			}
		}
	}
	c.export.edges.Lock()
	defer c.export.edges.Unlock()
	for at, n := off, int64(0); at < end; at += n {
		var err error
		n = d.part(at, end)
		lead := at & (unit - 1)
		switch whole := n%unit == 0; {
		case whole && zeroes:
			err = c.zero(req, at, n, false)
		case whole:
			err = d.WriteAt(c.ctx, (*t.buf)[dataAt:][at-off:][:n], at, false)
		default:
			if err = d.ReadAt(c.reading, block, at-lead); err != nil {
				return err
			}
			part := block[lead : lead+n]
			if clear(part); !zeroes {
				copy(part, (*t.buf)[dataAt:][at-off:])
			}
			err = d.WriteAt(c.ctx, block, at-lead, false)
		}
		if err != nil {
			return err
		}
	}
	if req.flags&flagFUA != 0 {
		return d.Flush(c.ctx)
	}
	return nil
}

// clip makes extents that begin at a block say what lies in a range of bytes behind it.
func clip(extents []blockdev.Extent, lead, length int64) ([]blockdev.Extent, error) {
	if len(extents) == 0 || extents[0].Length <= lead {
		return nil, fmt.Errorf("the device found %d extents, that do not reach the range: %w", len(extents), content.ErrCorrupt)
	}
	extents[0].Length -= lead
	for i := range extents {
		extents[i].Length = min(extents[i].Length, length)
		if length -= extents[i].Length; length == 0 {
			return extents[:i+1], nil
		}
	}
	return extents, nil
}
