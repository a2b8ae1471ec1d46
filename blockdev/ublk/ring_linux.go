package ublk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The part of io_uring's interface that is used here: include/uapi/linux/io_uring.h.
const (
	setupCQSize       = 1 << 3
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	enterGetEvents = 1 << 0

	offSQ   = 0
	offCQ   = 0x8000000
	offSQEs = 0x10000000

	opPoll    = 6
	opTimeout = 11
	opCancel  = 14
	opCommand = 46
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqCPU, sqIdle, features, wqFD uint32
	_                                                          [3]uint32
	sq                                                         struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// submission is struct io_uring_sqe as a command or a plain operation uses it.
type submission struct {
	opcode   uint8
	flags    uint8
	priority uint16
	fd       int32
	off      uint64 // the command's number in the low half, for opCommand
	addr     uint64
	length   uint32
	opFlags  uint32
	userData uint64
	_        uint64
	payload  [16]byte // 80 bytes in a ring of long submissions
}

// completion is struct io_uring_cqe.
type completion struct {
	userData uint64
	res      int32
	flags    uint32
}

// ring is one io_uring, which one goroutine at a time submits to, and one takes from.
// With setupSingleIssuer that is the thread that has made it, but for close.
type ring struct {
	fd             int
	sqMap, cqMap   []byte
	sqeMap         []byte
	stride         int // bytes of a submission
	sqHead, sqTail *uint32
	sqMask         uint32
	tail           uint32 // of what next gave out
	submitted      uint32 // of what the kernel took
	cqHead, cqTail *uint32
	cqes           []completion
}

// newRing makes a ring; with setupSQE128, submissions carry 80 bytes of a command's
// payload.
func newRing(entries int, flags uint32) (*ring, error) {
	p := ringParams{flags: setupCQSize | flags, cqEntries: uint32(4 * entries)}
	r := &ring{stride: int(unsafe.Sizeof(submission{}))}
	if flags&setupSQE128 != 0 {
		r.stride *= 2
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r.fd = int(fd)
	if err := r.mapAll(&p); err != nil {
		return nil, errors.Join(fmt.Errorf("map an io_uring: %w", err), r.close())
	}
	return r, nil
}

func (r *ring) mapAll(p *ringParams) (err error) {
	shared := func(off int64, n int) []byte {
		if err != nil {
			return nil
		}
		var b []byte
		b, err = unix.Mmap(r.fd, off, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		return b
	}
	r.sqMap = shared(offSQ, int(p.sq.array+4*p.sqEntries))
	r.cqMap = shared(offCQ, int(p.cq.cqes)+int(p.cqEntries)*int(unsafe.Sizeof(completion{})))
	r.sqeMap = shared(offSQEs, int(p.sqEntries)*r.stride)
	if err != nil {
		return err
	}
	word := func(b []byte, off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[off])) }
	r.sqHead, r.sqTail = word(r.sqMap, p.sq.head), word(r.sqMap, p.sq.tail)
	r.sqMask = *word(r.sqMap, p.sq.mask)
	for i, array := uint32(0), unsafe.Slice(word(r.sqMap, p.sq.array), p.sqEntries); i < p.sqEntries; i++ {
		array[i] = i
	}
	r.cqHead, r.cqTail = word(r.cqMap, p.cq.head), word(r.cqMap, p.cq.tail)
	r.cqes = unsafe.Slice((*completion)(unsafe.Pointer(&r.cqMap[p.cq.cqes])), p.cqEntries)
	return nil
}

// close gives the ring up; what it still has in the kernel is cancelled.
func (r *ring) close() error {
	var errs []error
	for _, m := range [][]byte{r.sqMap, r.cqMap, r.sqeMap} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	return errors.Join(append(errs, unix.Close(r.fd))...)
}

// next returns an empty submission to fill; with the queue full it first gives
// the kernel what is there.
func (r *ring) next() (*submission, error) {
	if r.tail-atomic.LoadUint32(r.sqHead) > r.sqMask {
		if err := r.submit(); err != nil {
			return nil, err
		}
	}
	at := int(r.tail&r.sqMask) * r.stride
	clear(r.sqeMap[at : at+r.stride])
	r.tail++
	return (*submission)(unsafe.Pointer(&r.sqeMap[at])), nil
}

// add adds a submission without a command.
func (r *ring) add(s submission) error {
	next, err := r.next()
	if err == nil {
		*next = s
	}
	return err
}

// alarm has a completion with that token come after a while, -ETIME. The kernel
// reads after at the next submit.
func (r *ring) alarm(after *unix.Timespec, token uint64) error {
	return r.add(submission{opcode: opTimeout, addr: address(after), length: 1, userData: token})
}

// cancel asks the kernel to give the submission with a token up, as a further one.
func (r *ring) cancel(which, token uint64) error {
	return r.add(submission{opcode: opCancel, addr: which, userData: token})
}

// submit gives the kernel all submissions and takes in what has completed, and
// does not wait.
func (r *ring) submit() error { return r.enter(0) }

// linger is submit, and waits until something has completed or a signal comes. The
// runtime isn't told: have something complete soon.
func (r *ring) linger() error { return r.enter(1) }

func (r *ring) enter(atLeast uintptr) error {
	for {
		atomic.StoreUint32(r.sqTail, r.tail)
		n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.tail-r.submitted), atLeast, enterGetEvents, 0, 0)
		if errno == 0 {
			r.submitted += uint32(n)
		}
		switch {
		case errno != 0 && !transient(errno):
			return os.NewSyscallError("io_uring_enter", errno)
		case r.submitted == r.tail:
			return nil
		}
	}
}

func (r *ring) wait() error {
	for r.empty() {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, 1, enterGetEvents, 0, 0)
		if errno != 0 && !transient(errno) {
			return os.NewSyscallError("io_uring_enter", errno)
		}
	}
	return nil
}

// transient are failures that trying again mends: a signal, and a full
// completion queue, which the kernel empties into memory.
func transient(errno unix.Errno) bool {
	return errno == unix.EINTR || errno == unix.EAGAIN || errno == unix.EBUSY
}

// empty reports whether no completion is left to take.
func (r *ring) empty() bool { return *r.cqHead == atomic.LoadUint32(r.cqTail) }

// take returns the oldest completion; the queue must not be empty.
func (r *ring) take() completion {
	head := *r.cqHead
	c := r.cqes[head&uint32(len(r.cqes)-1)]
	atomic.StoreUint32(r.cqHead, head+1)
	return c
}

// signal wakes a ring from any goroutine: an eventfd that the ring polls.
type signal int

func newSignal() (signal, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return signal(fd), os.NewSyscallError("eventfd", err)
}

// set makes the ring complete what await asked for, now or once it does.
func (s signal) set() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// Nothing else can fail: the count would have to come to 2^64.
	for _, err := unix.Write(int(s), one[:]); errors.Is(err, unix.EINTR); {
		_, err = unix.Write(int(s), one[:])
	}
}

// clear takes the signal back, before it is awaited again.
func (s signal) clear() {
	var count [8]byte
	for _, err := unix.Read(int(s), count[:]); errors.Is(err, unix.EINTR); {
		_, err = unix.Read(int(s), count[:])
	}
}

// await asks r for one completion with that token when the signal is set.
func (s signal) await(r *ring, token uint64) error {
	return r.add(submission{opcode: opPoll, fd: int32(s), opFlags: unix.POLLIN, userData: token})
}

func (s signal) close() error { return unix.Close(int(s)) }
