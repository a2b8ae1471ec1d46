package nbd

import (
	"bytes"

	"github.com/grangemesh/grange/blockdev"
)

// togetherMax is how many writes the device is given at once: what came with one read of
// the socket, of a client with a deep queue of short ones.
const togetherMax = 32

// together are writes that were read at once, and are given to the device at once. Their
// data lies in the input, whose next fill they do not outlive.
type together struct {
	requests []request
	writes   []blockdev.Write // of requests, whose data are
	data     []bytes.Reader   // over
	pieces   [][]byte
}

// prompt reports whether a write may be made at once, if the device can.
func (c *conn) prompt(req request) bool {
	return req.flags&flagFUA == 0 && req.length <= inlineMax && !c.partial(req)
}

// gather takes a write whose data is at hand, if it may be made at once.
func (c *conn) gather(req request) bool {
	if !c.prompt(req) || int(req.length) > c.in.buffered() {
		return false
	}
	c.together.add(req, c.in.next(int(req.length)))
	if len(c.together.requests) == togetherMax {
		c.writeTogether()
	}
	return true
}

func (x *together) add(req request, p []byte) {
	if x.data == nil {
		x.data = make([]bytes.Reader, togetherMax)
	}
	r := &x.data[len(x.requests)]
	r.Reset(p)
	x.requests, x.pieces = append(x.requests, req), append(x.pieces, p)
	x.writes = append(x.writes, blockdev.Write{Data: r, Length: len(p), Offset: int64(req.offset)})
}

// writeTogether gives the device what was gathered. It answers what is written at once.
func (c *conn) writeTogether() {
	x := &c.together
	if len(x.requests) == 0 {
		return
	}
	written := c.tryWrites(x.writes)
	for i, req := range x.requests {
		if i < written {
			c.reply(req, blockdev.OK, "")
			continue
		}
		b := c.take(len(x.pieces[i]))
		*b = append((*b)[:dataAt], x.pieces[i]...)
		c.start(req, b)
	}
	x.requests, x.writes, x.pieces = x.requests[:0], x.writes[:0], x.pieces[:0]
}

// tryWrites makes the first of some writes that the device takes at once, and returns how
// many.
func (c *conn) tryWrites(ws []blockdev.Write) int {
	if !c.changes.begin() {
		return 0
	}
	defer c.changes.end()
	if !c.export.edges.TryRLock() {
		return 0
	}
	defer c.export.edges.RUnlock()
	return blockdev.TryWriteBatch(c.device.Device, ws)
}

// writeAlone makes a write of which all is in a buffer of its own.
func (c *conn) writeAlone(req request, b *[]byte) (written bool) {
	x := &c.together
	x.add(req, (*b)[dataAt:])
	written = c.tryWrites(x.writes) == 1
	x.requests, x.writes, x.pieces = x.requests[:0], x.writes[:0], x.pieces[:0]
	if written {
		c.reply(req, blockdev.OK, "")
	}
	return written
}
