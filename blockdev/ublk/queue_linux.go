package ublk

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev"
)

// queue is one queue of a disk. Once its thread has it, that alone uses it, and
// each of its requests between being handed over and answered.
type queue struct {
	disk        *Disk
	number      int // in its disk
	thread      *thread
	slot        int // in its thread
	mapping     []byte
	descriptors []descriptor // by tag, written by the kernel
	data        []byte       // of the requests, one after the other
	tasks       []task       // by tag
	live        int          // tags that have not ended
	waiting     int          // tags whose requests have goroutines
	used        bool         // since the thread last gave memory back
	touched     bool         // data may hold memory
	fetched     chan struct{}
	ended       chan struct{}
}

// task is a request that waits for the device on a goroutine of its own.
type task struct {
	queue *queue
	tag   uint16
	res   int32
	run   func() // bound once
}

// newQueues makes the queues of a device, with memory for data that costs nothing
// until it is used.
func newQueues(d *Disk, i info) ([]*queue, error) {
	d.requestMax = int(i.requestMax)
	queues := make([]*queue, i.queues)
	for number := range queues {
		depth := int(i.depth)
		q := &queue{disk: d, number: number, tasks: make([]task, depth), live: depth, fetched: make(chan struct{}), ended: make(chan struct{})}
		var err error
		q.data, err = unix.Mmap(-1, 0, depth*d.requestMax, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map %d bytes for the data of %s: %w", depth*d.requestMax, d.Path(), err), closeAll(queues[:number]))
		}
		queues[number] = q
	}
	return queues, nil
}

// connect maps the kernel's descriptors.
func (q *queue) connect(char int) error {
	page := unix.Getpagesize()
	whole := func(n int) int { return (n + page - 1) / page * page }
	each := int(unsafe.Sizeof(descriptor{}))
	var err error
	q.mapping, err = unix.Mmap(char, int64(q.number*whole(depthMax*each)), whole(len(q.tasks)*each), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err == unix.EINVAL {
		err = errServed
	}
	if err != nil {
		return fmt.Errorf("map the requests of queue %d: %w", q.number, err)
	}
	q.descriptors = unsafe.Slice((*descriptor)(unsafe.Pointer(&q.mapping[0])), len(q.tasks))
	return nil
}

func closeAll(queues []*queue) error {
	var errs []error
	for _, q := range queues {
		errs = append(errs, q.close())
	}
	return errors.Join(errs...)
}

// close unmaps; no tag may be left in the kernel.
func (q *queue) close() error {
	err := unix.Munmap(q.data)
	if q.mapping != nil {
		err = errors.Join(err, unix.Munmap(q.mapping))
	}
	return err
}

// buffer is the memory of a tag.
func (q *queue) buffer(tag uint16) []byte {
	n := q.disk.requestMax
	return q.data[int(tag)*n:][:n:n]
}

// prompt answers a request that needs no wait.
func (q *queue) prompt(tag uint16) (res int32, ok bool) {
	r, device := q.descriptors[tag], q.disk.prompter
	n := int(r.sectors) * sectorSize
	if device == nil || n > q.disk.requestMax {
		return 0, false
	}
	p, off := q.buffer(tag)[:n], int64(r.start)*sectorSize
	switch r.op & (reqMask | reqFUA) {
	case reqRead, reqRead | reqFUA:
		ok = device.TryReadAt(p, off)
	case reqWrite:
		ok = device.TryWriteAt(p, off)
	}
	return int32(n), ok
}

// hand starts a goroutine for a request; its thread hears when it is done.
func (q *queue) hand(tag uint16) {
	t := &q.tasks[tag]
	if t.run == nil {
		t.queue, t.tag = q, tag
		t.run = func() {
			t.res = t.do()
			q.thread.answered(t)
		}
	}
	go t.run()
}

// do asks the device, and returns what the kernel is to be told: bytes, or an
// errno below zero.
func (t *task) do() int32 {
	d, r := t.queue.disk, t.queue.descriptors[t.tag]
	ctx := d.ctx
	if r.op&reqMask == reqRead {
		ctx = d.readContext()
	}
	began := time.Now()
	n, err := d.serve(ctx, r, t.queue.buffer(t.tag))
	d.server.meter.Waited(time.Since(began))
	if err == nil {
		return n
	}
	code := blockdev.ErrnoOf(err)
	d.server.meter.Failed(code)
	if code == blockdev.EIO && ctx.Err() == nil {
		d.complain.Do(func() {
			d.server.cfg.Log.Warn("ublk: request failed", "device", d.Path(), "command", commandName(r.op&reqMask),
				"offset", int64(r.start)*sectorSize, "length", int64(r.sectors)*sectorSize, "error", err)
		})
	}
	return -int32(code)
}

// serve does a request with the device.
func (d *Disk) serve(ctx context.Context, r descriptor, buffer []byte) (int32, error) {
	off, n, fua := int64(r.start)*sectorSize, int64(r.sectors)*sectorSize, r.op&reqFUA != 0
	switch op := r.op & reqMask; {
	case (op == reqRead || op == reqWrite) && n > int64(len(buffer)):
		return 0, fmt.Errorf("%d bytes in a request of at most %d: %w", n, len(buffer), errors.ErrUnsupported)
	case op == reqRead:
		return int32(n), d.device.ReadAt(ctx, buffer[:n], off)
	case op == reqWrite:
		return int32(n), d.device.WriteAt(ctx, buffer[:n], off, fua)
	case op == reqFlush:
		return 0, d.device.Flush(ctx)
	case op == reqDiscard && d.trimmer != nil:
		return 0, d.trimmer.Discard(ctx, off, n, fua)
	case op == reqWriteZeroes && d.trimmer != nil:
		return 0, d.trimmer.Zero(ctx, off, n, r.op&reqNoUnmap != 0, fua)
	default:
		return 0, fmt.Errorf("request of kind %d: %w", op, errors.ErrUnsupported)
	}
}
