package nbd

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// holeMin is the shortest range of zeros that is sent as a hole; it must have room for the heads of two chunks.
	holeMin = 4 << 10
	// chunksMax bounds the chunks of one reply: long reads look for longer holes.
	chunksMax = 64
	// extentsMax bounds the extents of one block status: what a reply buffer of the smallest class holds with its head.
	extentsMax = 500
	statusMax  = structuredSize + 4 + 8*extentsMax
)

// layChunks makes a structured reply, in place, of dataHead bytes of room and the data behind them, and returns its
// length. Zeros become holes: the data behind a hole moves up, and the heads of the chunks find room where the zeros
// were.
func layChunks(p []byte, req request) int {
	data := p[dataHead:]
	n := len(data)
	unit := max(holeMin, 1<<bits.Len(uint((n-1)/chunksMax)))
	if req.flags&flagDF != 0 {
		unit = n
	}
	w := 0
	for at := 0; at < n; {
		end, hole := run(data, at, unit)
		flags := uint16(0)
		if end == n {
			flags = chunkDone
		}
		kind, length := uint16(chunkData), 8+end-at
		if hole {
			kind, length = chunkHole, 8+4
		} else {
			copy(p[w+dataHead:], data[at:end])
		}
		head := chunk{flags, kind, req.cookie, uint32(length)}.append(p[:w])
		head = binary.BigEndian.AppendUint64(head, req.offset+uint64(at))
		if hole {
			head = binary.BigEndian.AppendUint32(head, uint32(end-at))
		}
		w = len(head)
		if !hole {
			w += end - at
		}
		at = end
	}
	return w
}

// run returns where the zeros, or the data, that begin at the given place end: looked at in units.
func run(data []byte, at, unit int) (end int, hole bool) {
	end = min(at+unit, len(data))
	hole = content.IsZero(data[at:end])
	for end < len(data) {
		next := min(end+unit, len(data))
		if content.IsZero(data[end:next]) != hole {
			break
		}
		end = next
	}
	return end, hole
}

// blockStatus leaves in t.buf what the client's contexts say of the blocks of the request.
func (c *conn) blockStatus(t *task, off, n int64) error {
	limit := extentsMax
	if t.req.flags&flagReqOne != 0 {
		limit = 1
	}
	*t.buf = (*t.buf)[:c.lead]
	for i, m := range c.contexts {
		var err error
		if t.extents, err = c.extents(t.extents[:0], m, blockdev.Range{Offset: off, Length: n}, limit); err != nil {
			return err
		}
		if t.extents, err = clip(t.extents, int64(t.req.offset)-off, int64(t.req.length)); err != nil {
			return err
		}
		last := i == len(c.contexts)-1
		*t.buf = appendStatus(*t.buf, t.req.cookie, m, t.extents, last)
	}
	return nil
}

// extents asks the device what a context says; in a bitmap what is not a hole is dirty.
func (c *conn) extents(dst []blockdev.Extent, m metaContext, r blockdev.Range, limit int) ([]blockdev.Extent, error) {
	if m.name == contextBase {
		return c.device.Extents(c.reading, dst, r.Offset, r.Length, limit)
	}
	h, ok := c.device.Device.(blockdev.History)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	at, end := r.Offset, r.Offset+r.Length
	add := func(to int64, state blockdev.State) (more bool) {
		if to = min(to, end); to > at {
			dst, at = append(dst, blockdev.Extent{Length: to - at, State: state}), to
		}
		return at < end && len(dst) < limit
	}
	for changed, err := range h.Changes(c.reading, m.from, r.Offset, r.Length) {
		if err != nil {
			return nil, err
		}
		if !add(changed.Offset, blockdev.Hole) || !add(changed.Offset+changed.Length, blockdev.Data) {
			return dst, nil
		}
	}
	add(end, blockdev.Hole)
	return dst, nil
}

func appendStatus(b []byte, cookie uint64, m metaContext, extents []blockdev.Extent, last bool) []byte {
	flags, states := uint16(0), [...]uint32{blockdev.Zeros: stateZero, blockdev.Hole: stateHole | stateZero}
	if last {
		flags = chunkDone
	}
	if m.name != contextBase {
		states = [...]uint32{blockdev.Data: stateDirty, blockdev.Hole: 0}
	}
	b = chunk{flags, chunkStatus, cookie, uint32(4 + 8*len(extents))}.append(b)
	b = binary.BigEndian.AppendUint32(b, m.id)
	for _, e := range extents {
		b = binary.BigEndian.AppendUint32(b, uint32(e.Length))
		b = binary.BigEndian.AppendUint32(b, states[e.State])
	}
	return b
}
