package ublk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
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
	tasks       []task       // by tag
	live        int          // tags that have not ended
	lame        bool         // the kernel took some out of service
	fetched     chan struct{}
	ended       chan struct{}
}

// task answers the requests of one tag. As an io.ReaderAt it is the data of a write,
// as an io.WriterAt where that of a read goes, from byte 0 of the request on.
//
// Its thread alone copies data. Were another at it while that one ends, the kernel
// would fail the request, which otherwise it keeps for the next server.
type task struct {
	queue *queue
	tag   uint16
	run   func() // bound once

	// What follows is the goroutine's between hand and finish.
	data *[]byte // of a read or a write
	err  error   // of taking the data
	res  int32
}

func newQueues(d *Disk, i info) []*queue {
	queues := make([]*queue, i.queues)
	for number := range queues {
		q := &queue{disk: d, number: number, tasks: make([]task, i.depth), live: int(i.depth), fetched: make(chan struct{}), ended: make(chan struct{})}
		for tag := range q.tasks {
			q.tasks[tag].queue, q.tasks[tag].tag = q, uint16(tag)
		}
		queues[number] = q
	}
	return queues
}

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
	if q.mapping == nil {
		return nil
	}
	return unix.Munmap(q.mapping)
}

func (q *queue) prompt(tag uint16) (res int32, ok bool) {
	r, device, t := q.descriptors[tag], q.disk.device, &q.tasks[tag]
	n, off := int(r.sectors)*sectorSize, int64(r.start)*sectorSize
	switch r.op & (reqMask | reqFUA) {
	case reqRead, reqRead | reqFUA:
		ok = device.TryReadTo(t, n, off)
	case reqWrite:
		ok = device.TryWriteFrom(t, n, off)
	}
	return int32(n), ok
}

// hand starts a goroutine for a request; its thread hears when it is done.
func (q *queue) hand(tag uint16) {
	r, t := q.descriptors[tag], &q.tasks[tag]
	op := r.op & reqMask
	t.data, t.err = nil, nil
	if op == reqRead || op == reqWrite {
		t.data = q.disk.server.buffers.Get(int(r.sectors) * sectorSize)
	}
	if op == reqWrite {
		_, t.err = t.ReadAt(*t.data, 0)
	}
	if t.run == nil {
		t.run = func() {
			t.res = t.do()
			q.thread.answered(t)
		}
	}
	go t.run()
}

// finish gives the kernel the data of a read, and returns what it is to be told.
func (t *task) finish() int32 {
	if t.data == nil {
		return t.res
	}
	defer func() {
		t.queue.disk.server.buffers.Put(t.data)
		t.data = nil // else it would be held for the next request of the tag
	}()
	if r := t.queue.descriptors[t.tag]; r.op&reqMask == reqRead && t.res > 0 {
		if _, err := t.WriteAt(*t.data, 0); err != nil {
			return t.fail(r, err)
		}
	}
	return t.res
}

// ReadAt implements io.ReaderAt: the data of a write.
func (t *task) ReadAt(p []byte, off int64) (int, error) { return t.copy(unix.SYS_PREAD64, p, off) }

// WriteAt implements io.WriterAt: the data of a read.
func (t *task) WriteAt(p []byte, off int64) (int, error) { return t.copy(unix.SYS_PWRITE64, p, off) }

// copy moves data between p and the request. It waits for nothing, and the runtime
// isn't told, which takes longer than a block: the longest keeps a processor for less
// than a lull.
func (t *task) copy(call uintptr, p []byte, off int64) (int, error) {
	// The kernel says that it copied all of p though that goes beyond the request.
	if n := int64(t.queue.descriptors[t.tag].sectors) * sectorSize; off < 0 || off > n-int64(len(p)) {
		return 0, fmt.Errorf("%w: %d bytes at %d of a request of %d", content.ErrInvalid, len(p), off, n)
	}
	at := dataOffset + dataQueue*uintptr(t.queue.number) + dataTag*uintptr(t.tag) + uintptr(off)
	for {
		n, _, errno := unix.RawSyscall6(call, uintptr(t.queue.disk.char), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), at, 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return 0, fmt.Errorf("copy the data of a request: %w", errno)
		case int(n) < len(p):
			return int(n), fmt.Errorf("copy the data of a request: %w: %d bytes of %d", io.ErrUnexpectedEOF, n, len(p))
		default:
			return len(p), nil
		}
	}
}

// do asks the device, and returns what the kernel is to be told: bytes, or an
// errno below zero.
func (t *task) do() int32 {
	d, r := t.queue.disk, t.queue.descriptors[t.tag]
	if t.err != nil {
		return t.fail(r, t.err)
	}
	ctx := d.ctx
	if r.op&reqMask == reqRead {
		ctx = d.readContext()
	}
	began := time.Now()
	n, err := t.serve(ctx, r)
	d.server.meter.Waited(time.Since(began))
	if err != nil {
		return t.fail(r, err)
	}
	return n
}

// fail counts a request that failed, and returns what the kernel is to be told.
func (t *task) fail(r descriptor, err error) int32 {
	d, code := t.queue.disk, blockdev.ErrnoOf(err)
	d.server.meter.Failed(code)
	if code == blockdev.EIO && d.reads.Err() == nil {
		d.complain.Do(func() {
			d.server.cfg.Log.Warn("ublk: request failed", "device", d.Path(), "command", d.server.meter.Name(int(r.op&reqMask)),
				"offset", int64(r.start)*sectorSize, "length", int64(r.sectors)*sectorSize, "error", err)
		})
	}
	return -int32(code)
}

// serve does a request with the device.
func (t *task) serve(ctx context.Context, r descriptor) (int32, error) {
	d, off, n, fua := t.queue.disk, int64(r.start)*sectorSize, int64(r.sectors)*sectorSize, r.op&reqFUA != 0
	switch op := r.op & reqMask; {
	case op == reqRead:
		return int32(n), d.device.ReadAt(ctx, *t.data, off)
	case op == reqWrite:
		return int32(n), d.device.WriteAt(ctx, *t.data, off, fua)
	case op == reqFlush:
		return 0, d.device.Flush(ctx)
	case op == reqDiscard || op == reqWriteZeroes:
		return 0, d.device.Zero(ctx, off, n, op == reqWriteZeroes && r.op&reqNoUnmap != 0, fua)
	default:
		return 0, fmt.Errorf("request of kind %d: %w", op, errors.ErrUnsupported)
	}
}
