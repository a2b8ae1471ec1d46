package nbd

import "github.com/grangemesh/grange/blockdev"

// togetherMax is how many writes the device is given at once: what came with one read of
// the socket, of a client with a deep queue of short ones.
const togetherMax = 32

// together are writes that were read at once, and are given to the device at once. Their
// data lies in the input, whose next fill they do not outlive.
type together struct {
	requests []request
	writes   []blockdev.Write // of requests
}

func (x *together) add(req request, p []byte) {
	x.requests = append(x.requests, req)
	x.writes = append(x.writes, blockdev.Write{Data: p, Offset: int64(req.offset)})
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

// writeTogether gives the device what was gathered, and answers what is written at once.
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
		p := x.writes[i].Data
		b := c.take(len(p))
		*b = append((*b)[:dataAt], p...)
		c.start(req, b)
	}
	x.requests, x.writes = x.requests[:0], x.writes[:0]
}

// writeAlone makes a write whose data is in a buffer of its own, if the device does at
// once, and answers it. Nothing is gathered.
func (c *conn) writeAlone(req request, p []byte) (written bool) {
	x := &c.together
	x.add(req, p)
	if written = c.tryWrites(x.writes) == 1; written {
		c.reply(req, blockdev.OK, "")
	}
	x.requests, x.writes = x.requests[:0], x.writes[:0]
	return written
}

// tryWrites makes the first of some writes that the device takes at once, and returns how many.
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
