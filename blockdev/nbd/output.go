package nbd

import (
	"cmp"
	"net"
	"sync"
	"syscall"
)

// output sends replies. Any goroutine may send, and whoever finds the socket free writes for all that come meanwhile,
// without ever waiting for the client: once the socket is full, a goroutine takes over until all is written. So a
// client that does not read delays nobody but itself, and its budget bounds what it can leave lying here.
type output struct {
	conn net.Conn
	raw  syscall.RawConn // nil: every write may block
	// budget is what the buffers are released to.
	budget *budget
	lead   int // bytes at the beginning of each buffer that are not sent

	mu    sync.Mutex
	queue []*[]byte // guarded by mu
	busy  bool      // guarded by mu: somebody writes, and will write what is queued
	err   error     // guarded by mu: the first failure; nothing is sent after it
	idle  sync.Cond // L is &mu; busy became false

	// The rest belongs to who is busy.
	taken    []*[]byte             // what is being written
	rest     net.Buffers           // what of taken is still to write
	vector   [][]byte              // memory of rest
	writable func(fd uintptr) bool // o.tryWrite, bound once
	wrote    int                   // by tryWrite
	failed   error                 // of tryWrite
	drain    func()                // o.block, bound once
}

func (o *output) open(conn net.Conn, raw syscall.RawConn, budget *budget) {
	o.conn, o.raw, o.budget = conn, raw, budget
	o.idle.L = &o.mu
	o.writable, o.drain = o.tryWrite, o.block
}

// send writes b, or leaves it to who is writing, and releases it afterwards.
func (o *output) send(b *[]byte) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		o.budget.release(b)
		return
	}
	o.queue = append(o.queue, b)
	if o.busy {
		o.mu.Unlock()
		return
	}
	o.busy = true
	o.mu.Unlock()

	for o.take() {
		if !o.writeNow() {
			go o.drain()
			return
		}
	}
}

// take makes what is queued the writer's. With nothing there it ends the writer's turn and returns false.
func (o *output) take() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, b := range o.taken {
		o.budget.release(b)
	}
	clear(o.taken)
	o.taken, o.queue = o.queue, o.taken[:0]
	if o.err != nil {
		for _, b := range o.taken {
			o.budget.release(b)
		}
		o.taken = o.taken[:0]
	}
	if len(o.taken) == 0 {
		o.busy = false
		o.idle.Broadcast()
		return false
	}
	clear(o.vector)
	o.vector = o.vector[:0]
	for _, b := range o.taken {
		o.vector = append(o.vector, (*b)[o.lead:])
	}
	o.rest = o.vector
	return true
}

// writeNow writes what the socket takes at once, and reports whether that was all.
func (o *output) writeNow() bool {
	if o.raw == nil {
		return false
	}
	if err := o.raw.Write(o.writable); err != nil {
		o.fail(err)
		return true
	}
	if o.failed != nil {
		o.fail(o.failed)
		return true
	}
	for len(o.rest) > 0 && o.wrote >= len(o.rest[0]) {
		o.wrote -= len(o.rest[0])
		o.rest = o.rest[1:]
	}
	if len(o.rest) == 0 {
		return true
	}
	o.rest[0] = o.rest[0][o.wrote:]
	return false
}

// block writes the rest, and what is queued by then, however long the client takes.
func (o *output) block() {
	for {
		if _, err := o.rest.WriteTo(o.conn); err != nil {
			o.fail(err)
		}
		if !o.take() {
			return
		}
	}
}

// fail ends the connection: its reader finds it closed.
func (o *output) fail(err error) {
	o.mu.Lock()
	o.err = cmp.Or(o.err, err)
	o.mu.Unlock()
	o.conn.Close()
}

// wait returns when all that was sent is written or the connection has failed.
func (o *output) wait() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.busy {
		o.idle.Wait()
	}
}
