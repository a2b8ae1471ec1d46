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

// parts calls part for each block of which a range has a part, from one byte to another,
// and whole for the blocks between, in their order, until one fails.
func (d *device) parts(off, n int64, part func(block, from, to int64) error, whole func(off, n int64) error) error {
	unit := int64(d.Geometry().BlockSize)
	for end := off + n; off < end; {
		next := end &^ (unit - 1)
		lead := off & (unit - 1)
		var err error
		if lead != 0 || next == off {
			next = min(off-lead+unit, end)
			err = part(off-lead, lead, next-off+lead)
		} else {
			err = whole(off, next-off)
		}
		if err != nil {
			return err
		}
		off = next
	}
	return nil
}

// readBytes fills p from off.
func (d *device) readBytes(ctx context.Context, p []byte, off int64) error {
	block := make([]byte, d.Geometry().BlockSize)
	return d.parts(off, int64(len(p)), func(at, from, to int64) error {
		if err := d.ReadAt(ctx, block, at); err != nil {
			return err
		}
		p = p[copy(p, block[from:to]):]
		return nil
	}, func(at, n int64) error {
		err := d.ReadAt(ctx, p[:n], at)
		p = p[n:]
		return err
	})
}

// changeBytes makes a change of a range: edge changes the bytes of a block, at a place
// in the range, and whole makes the change of whole blocks.
func (c *conn) changeBytes(req request, edge func(p []byte, at int64), whole func(off, n int64) error) error {
	d, off, n := c.device, int64(req.offset), int64(req.length)
	block := make([]byte, d.Geometry().BlockSize)
	read := func(at, _, _ int64) error { return d.ReadAt(c.reading, block, at) }
	// What must come from afar comes before the others are held up.
	if err := d.parts(off, n, read, func(_, _ int64) error { return nil }); err != nil {
		return err
	}
	c.export.edges.Lock()
	defer c.export.edges.Unlock()
	err := d.parts(off, n, func(at, from, to int64) error {
		if err := read(at, from, to); err != nil {
			return err
		}
		edge(block[from:to], at+from-off)
		return d.WriteAt(c.ctx, block, at, false)
	}, whole)
	if err == nil && req.flags&flagFUA != 0 {
		err = d.Flush(c.ctx)
	}
	return err
}

// doBytes is do for a request of parts of blocks, and leaves its reply as do does.
func (c *conn) doBytes(t *task) error {
	req, b, d := t.req, t.buf, c.device
	unit := int64(d.Geometry().BlockSize)
	off, n := int64(req.offset), int64(req.length)
	from, to := off&^(unit-1), (off+n+unit-1)&^(unit-1)
	var err error
	switch req.command {
	case cmdRead:
		p := (*b)[:c.readHead()+int(n)]
		if err := d.readBytes(c.reading, p[c.readHead():], off); err != nil {
			return err
		}
		*b = p[:c.layRead(p, req)]
		return nil
	case cmdBlockStatus:
		return c.blockStatus(t, from, to-from)
	case cmdWrite:
		err = c.changeBytes(req, func(p []byte, at int64) { copy(p, (*b)[at:]) }, func(at, n int64) error {
			return d.WriteAt(c.ctx, (*b)[at-off:at-off+n], at, false)
		})
	case cmdTrim: // a wish: what is no whole block stays
		if from, to = (off+unit-1)&^(unit-1), (off+n)&^(unit-1); from < to {
			err = d.trimmer.Discard(c.ctx, from, to-from, req.flags&flagFUA != 0)
		}
	case cmdWriteZeroes:
		if req.flags&flagFastZero != 0 {
			return fmt.Errorf("zeroing parts of blocks is as slow as writing: %w", errors.ErrUnsupported)
		}
		err = c.changeBytes(req, func(p []byte, _ int64) { clear(p) }, func(at, n int64) error { return c.zero(t, at, n, false) })
	case cmdCache:
		err = t.pieces(from, to-from, func(p []byte, off int64) error { return d.ReadAt(c.reading, p, off) })
	}
	if err != nil {
		return err
	}
	*b = c.appendReply((*b)[:0], req, blockdev.OK, "")
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
