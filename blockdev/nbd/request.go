package nbd

import (
	"errors"
	"fmt"
	"time"

	"github.com/grangemesh/grange/blockdev"
)

const (
	// inlineMax is the longest read or write that is tried on the reader's goroutine: it fits the gathering buffer, and
	// copying it takes less time than a client notices.
	inlineMax = batchSize
	// wordsMax bounds the words beside an error.
	wordsMax = 1 << 10
	// replyMax is the longest reply without a read's data: an error with words.
	replyMax = structuredSize + 6 + wordsMax
	// pieceSize is how much of a long range is read at a time that no client gets.
	pieceSize = 1 << 20
)

// task is a request that waits for the device on a goroutine of its own.
type task struct {
	conn *conn
	req  request
	buf  *[]byte // a write's data, from dataAt on, later the reply
	gone bool    // a change that is not made: its client has hung up
	run  func()  // conn.work on this task, bound once

	extents []blockdev.Extent // memory of block status
}

// dispatch answers a request, or starts what will. Its error ends the connection.
func (c *conn) dispatch(req request) error {
	c.tally.Count(int(req.command), uint64(req.length))
	code, words := c.check(req)
	if code == blockdev.OK && req.command == cmdWrite && c.gather(req) {
		return nil
	}
	c.writeTogether()
	if req.command == cmdDisconnect {
		return errLeave
	}
	if code != blockdev.OK {
		c.reply(req, code, words)
		if req.command == cmdWrite {
			return c.in.skip(int64(req.length))
		}
		return nil
	}
	switch req.command {
	case cmdRead:
		if !c.readNow(req) {
			c.start(req, c.take(int(req.length)))
		}
	case cmdWrite:
		return c.write(req)
	default:
		c.start(req, c.take(c.memory(req)))
	}
	return nil
}

// memory is what a request without data takes: a reply, and the pieces of what is read for the device's cache alone.
func (c *conn) memory(req request) int {
	switch req.command {
	case cmdCache:
		return max(replyMax, int(min(req.length+2*blockSizeMax, pieceSize)))
	case cmdBlockStatus:
		return max(replyMax, len(c.contexts)*statusMax)
	}
	return replyMax
}

type rule struct {
	flags  uint16 // allowed
	writes bool   // needs an export that is not read-only
	whole  bool   // its length is bounded: the data is held in memory
}

func (c *conn) ruleOf(command uint16) (r rule, ok bool) {
	rules := [...]rule{
		cmdRead:        {flags: flagFUA | flagDF, whole: true},
		cmdWrite:       {flags: flagFUA, writes: true, whole: true},
		cmdTrim:        {flags: flagFUA, writes: true},
		cmdCache:       {flags: flagFUA, whole: true},
		cmdWriteZeroes: {flags: flagFUA | flagNoHole | flagFastZero, writes: true},
		cmdBlockStatus: {flags: flagFUA | flagReqOne},
	}
	if int(command) >= len(rules) || command == cmdBlockStatus && len(c.contexts) == 0 {
		return rule{}, false
	}
	return rules[command], true
}

// check refuses what the export or the protocol does not allow.
func (c *conn) check(req request) (blockdev.Errno, string) {
	if req.command == cmdFlush { // its other fields mean nothing
		return blockdev.OK, ""
	}
	g := c.device.Geometry()
	size := uint64(g.Size)
	r, ok := c.ruleOf(req.command)
	switch {
	case !ok:
		return blockdev.EINVAL, "a command that was not offered"
	case r.writes && g.ReadOnly:
		return blockdev.EPERM, "this export is read-only"
	case req.flags&^r.flags != 0 || req.flags&flagDF != 0 && !c.structured:
		return blockdev.EINVAL, "a flag that was not offered for this command"
	case r.whole && req.length > payloadMax && req.flags&flagDF != 0:
		return blockdev.EOVERFLOW, "too long to come in one piece"
	case r.whole && req.length > payloadMax:
		return blockdev.EINVAL, "longer than the largest payload"
	case req.length == 0:
		return blockdev.EINVAL, "of no length"
	case req.offset <= size && uint64(req.length) <= size-req.offset:
		return blockdev.OK, ""
	case req.command == cmdWrite || req.command == cmdWriteZeroes:
		return blockdev.ENOSPC, "beyond the end of the device"
	}
	return blockdev.EINVAL, "beyond the end of the device"
}

// readNow answers a read from what the device has at hand.
func (c *conn) readNow(req request) bool {
	if req.length > inlineMax || c.partial(req) {
		return false
	}
	head := c.readHead()
	b := c.room(head + int(req.length))
	from, to := len(*b), len(*b)+head+int(req.length)
	reply := (*b)[from:to]
	if !c.device.TryReadAt(reply[head:], int64(req.offset)) {
		return false
	}
	*b = (*b)[:from+c.layRead(reply, req)]
	return true
}

func (c *conn) readHead() int {
	if c.structured {
		return dataHead
	}
	return simpleSize
}

// layRead makes a reply of p, which has readHead bytes of room and then the data, and returns its length.
func (c *conn) layRead(p []byte, req request) int {
	if c.structured {
		return layChunks(p, req)
	}
	appendSimple(p[:0], req.cookie, blockdev.OK)
	return len(p)
}

// write reads the data of a write, and gives it to the device.
func (c *conn) write(req request) error {
	n := int(req.length)
	if n > c.in.buffered() {
		c.flush() // the rest of the data may be long in coming
	}
	b := c.take(n)
	*b = (*b)[:dataAt+n]
	if err := c.in.full((*b)[dataAt:]); err != nil {
		c.budget.release(b)
		return err
	}
	if c.prompt(req) && c.writeAlone(req, (*b)[dataAt:]) {
		c.budget.release(b)
		return nil
	}
	c.start(req, b)
	return nil
}

func (c *conn) reply(req request, code blockdev.Errno, words string) {
	b := c.room(replyMax)
	*b = c.appendReply(*b, req, code, words)
}

func (c *conn) appendReply(b []byte, req request, code blockdev.Errno, words string) []byte {
	if code != blockdev.OK {
		c.server.metrics.Failed(code)
	}
	if c.structured && (code != blockdev.OK || req.command == cmdRead) {
		return appendError(b, req.cookie, code, words[:min(len(words), wordsMax)])
	}
	return appendSimple(b, req.cookie, code)
}

func (r request) changes() bool {
	return r.command == cmdWrite || r.command == cmdTrim || r.command == cmdWriteZeroes
}

// start hands a request to a goroutine of its own, with b for its reply. With
// too many of them it waits for one to finish.
func (c *conn) start(req request, b *[]byte) {
	t := c.task()
	t.req, t.buf = req, b
	t.gone = req.changes() && !c.changes.begin() // counted here: a goroutine may be late
	c.working.Add(1)
	go t.run()
}

func (c *conn) task() *task {
	select {
	case t := <-c.idle:
		return t
	default:
	}
	if c.tasks < c.server.cfg.RequestsMax {
		c.tasks++
		t := &task{conn: c}
		t.run = func() { c.work(t) }
		return t
	}
	c.flush()
	return <-c.idle
}

// work does a task and sends its reply.
func (c *conn) work(t *task) {
	defer c.working.Done()
	began := time.Now()
	req, b := t.req, t.buf
	err := errGone
	if !t.gone {
		err = c.do(t)
		if req.changes() {
			c.changes.end()
		}
	}
	c.server.metrics.Waited(time.Since(began))
	code := blockdev.ErrnoOf(err)
	cut := code == blockdev.ESHUTDOWN && c.reading.Err() != nil // the connection ends without an answer
	if err != nil && !cut {
		*b = c.appendReply((*b)[:c.lead], req, code, err.Error())
		if code == blockdev.EIO && c.ctx.Err() == nil {
			c.loud.Do(func() {
				c.server.cfg.Log.Warn("nbd: request failed", "client", c.client(), "export", c.name.Load(),
					"command", c.server.metrics.Name(int(req.command)), "offset", req.offset, "length", req.length, "error", err)
			})
		}
	}
	t.buf = nil
	c.idle <- t
	if cut {
		c.budget.release(b)
		return
	}
	c.out.send(b)
}

// do asks the device and leaves the reply in t.buf, unless it fails.
func (c *conn) do(t *task) error {
	req, b, d := t.req, t.buf, c.device
	off, n, unit := int64(req.offset), int64(req.length), int64(d.Geometry().BlockSize)
	from, to := off&^(unit-1), (off+n+unit-1)&^(unit-1) // the blocks that it touches
	var err error
	switch req.command {
	case cmdRead:
		p := (*b)[:dataAt+n]
		if err := d.readBytes(c.reading, p[dataAt:], off); err != nil {
			return err
		}
		*b = p[:c.lead+c.layRead(p[c.lead:], req)]
		return nil
	case cmdBlockStatus:
		return c.blockStatus(t, from, to-from)
	case cmdFlush:
		err = d.Flush(c.ctx)
	case cmdCache:
		for ; from < to && err == nil; from += pieceSize {
			err = d.ReadAt(c.reading, (*b)[:min(to-from, pieceSize)], from)
		}
	default:
		err = c.change(t)
	}
	if err != nil {
		return err
	}
	*b = c.appendReply((*b)[:c.lead], req, blockdev.OK, "")
	return nil
}

func (c *conn) change(t *task) error {
	req, d := t.req, c.device
	if req.command != cmdTrim && c.partial(req) {
		return c.changeBytes(t)
	}
	c.export.edges.RLock()
	defer c.export.edges.RUnlock()
	off, n, fua := int64(req.offset), int64(req.length), req.flags&flagFUA != 0
	switch req.command {
	case cmdWrite:
		return d.WriteAt(c.ctx, (*t.buf)[dataAt:], off, fua)
	case cmdTrim: // a wish: what is no whole block stays
		unit := int64(d.Geometry().BlockSize)
		from, to := (off+unit-1)&^(unit-1), (off+n)&^(unit-1)
		if from >= to {
			return nil
		}
		return d.Zero(c.ctx, from, to-from, false, fua)
	}
	return c.zero(req, off, n, fua)
}

// zero makes a range read as zeros. Fast means faster than writing them, which
// nobody promises for zeros that must keep their space.
func (c *conn) zero(req request, off, n int64, fua bool) error {
	keep := req.flags&flagNoHole != 0
	if keep && req.flags&flagFastZero != 0 {
		return fmt.Errorf("zeroing here may be as slow as writing: %w", errors.ErrUnsupported)
	}
	return c.device.Zero(c.ctx, off, n, keep, fua)
}
