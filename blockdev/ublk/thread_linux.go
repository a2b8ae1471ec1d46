package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev/meter"
)

const (
	// ringEntries is how many answers go to the kernel in one call.
	ringEntries = 256
	// tagBits of a completion's token are the tag, those above the queue's slot.
	tagBits = 16

	tokenWake = 1<<64 - 1
	tokenTick = 1<<64 - 2
	tokenLull = 1<<64 - 3

	// lullNanos is how long a thread may keep a processor from the node's other work
	// while it waits for requests. A collection of garbage does not wait for it: the
	// runtime's signal ends the wait.
	lullNanos = 5_000_000

	// endTimeout is how long a thread may take to end, which takes it milliseconds.
	endTimeout = 5 * time.Second
	endPause   = time.Millisecond

	// tellSeconds is how long after a request the meter hears of it.
	tellSeconds = 5
)

// thread serves queues of any number of disks from one ring, on an operating
// system's thread of its own: the kernel takes answers from the thread alone that
// fetched the requests.
type thread struct {
	server *Server
	name   string
	wake   signal
	// For the kernel to read: in the heap, where nothing moves.
	tell, lull unix.Timespec

	mu    sync.Mutex
	inbox inbox // guarded by mu

	// What follows is the thread's own.
	id      int // the kernel's
	ring    *ring
	queues  []*queue // by slot; nil is free
	leaving bool
	handed  bool // requests went to goroutines that have not begun
	ticking bool // a tick is on its way
	lulling bool // the end of a lull is on its way
	quiet   bool // nothing was to do the last time
	working sync.WaitGroup
	tally   meter.Tally
}

// inbox is what others have for a thread.
type inbox struct {
	adopted  []*queue
	answered []*task
	leave    bool
}

func newThread(s *Server, number int) (*thread, error) {
	wake, err := newSignal()
	return &thread{
		server: s, name: fmt.Sprintf("ublk-%d", number), wake: wake,
		tell: unix.Timespec{Sec: tellSeconds}, lull: unix.Timespec{Nsec: lullNanos},
	}, err
}

// post changes the inbox, and wakes the thread if it was empty.
func (t *thread) post(change func(*inbox)) {
	t.mu.Lock()
	wake := len(t.inbox.adopted) == 0 && len(t.inbox.answered) == 0 && !t.inbox.leave
	change(&t.inbox)
	t.mu.Unlock()
	if wake {
		t.wake.set()
	}
}

func (t *thread) adopt(q *queue) { t.post(func(i *inbox) { i.adopted = append(i.adopted, q) }) }

// run serves until ctx ends or the ring fails. What is not answered then stays
// with the kernel. Call close after it.
func (t *thread) run(ctx context.Context) (err error) {
	runtime.LockOSThread() // for good: the thread ends with its ring
	if unix.Gettid() == unix.Getpid() {
		// This thread bears the program's name, and does not end. Locked, it
		// leaves the work to another.
		ended := make(chan error)
		go func() { ended <- t.run(ctx) }()
		return <-ended
	}
	t.id = unix.Gettid()
	if err := os.WriteFile("/proc/thread-self/comm", []byte(t.name), 0); err != nil {
		return fmt.Errorf("name a thread: %w", err)
	}
	if t.ring, err = newRing(ringEntries, setupSingleIssuer|setupDeferTaskrun); err != nil {
		return err
	}
	defer t.server.meter.Publish(&t.tally)
	told := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(told)
		t.post(func(i *inbox) { i.leave = true })
	})
	defer func() {
		if !unhook() {
			<-told
		}
	}()
	err = t.wake.await(t.ring, tokenWake)
	for err == nil && !t.leaving {
		err = t.turn()
	}
	return err
}

// close waits for the goroutines of requests, whose results come too late, and
// gives the ring up.
func (t *thread) close() error {
	t.working.Wait()
	t.awaitEnd()
	err := t.wake.close()
	if t.ring != nil {
		err = errors.Join(err, t.ring.close())
	}
	return err
}

// awaitEnd waits until the kernel has ended the thread, and with it has taken back the
// requests that it had fetched or was about to get. When a ring is closed under
// such, kernels up to 6.14 lose some: then the disk hangs for good.
func (t *thread) awaitEnd() {
	late := time.After(endTimeout)
	for t.id != 0 && !errors.Is(unix.Tgkill(os.Getpid(), t.id, 0), unix.ESRCH) {
		select {
		case <-time.After(endPause):
		case <-late:
			t.server.cfg.Log.Error("ublk: a thread does not end", "thread", t.name)
			return
		}
	}
}

// turn gives the kernel the answers there are, waits for something to do, and
// does it.
func (t *thread) turn() error {
	if err := t.rest(); err != nil {
		return err
	}
	tick := false
	t.quiet = true
	for !t.ring.empty() {
		c := t.ring.take()
		var err error
		switch c.userData {
		case tokenLull:
			t.lulling = false
			continue
		case tokenWake:
			err = t.receive()
		case tokenTick:
			tick = true
		default:
			err = t.complete(t.queues[c.userData>>tagBits], uint16(c.userData), c.res)
		}
		if err != nil {
			return err
		}
		t.quiet = false
	}
	if tick {
		t.ticking = false
		t.server.meter.Publish(&t.tally)
	}
	return nil
}

// rest gives the kernel the answers, and waits until something has completed.
//
// The runtime takes longer to learn that a thread sleeps, and that it woke, than
// many a request takes. So it isn't told until a lull has passed with nothing to
// do: the next request comes sooner where a disk is in use. One timeout bounds
// many such waits, since to set one for each would cost as much as is won.
func (t *thread) rest() error {
	if t.handed || t.quiet {
		if err := t.ring.submit(); err != nil || !t.ring.empty() {
			return err
		}
		if t.handed {
			// The new goroutines are this thread's to run, and it is about to
			// sleep where the scheduler looks for work last.
			t.handed = false
			runtime.Gosched()
		}
		return t.ring.wait()
	}
	if !t.lulling {
		if err := t.ring.alarm(&t.lull, tokenLull); err != nil {
			return err
		}
		t.lulling = true
	}
	return t.ring.linger()
}

func (t *thread) receive() error {
	t.wake.clear()
	if err := t.wake.await(t.ring, tokenWake); err != nil {
		return err
	}
	t.mu.Lock()
	in := t.inbox
	t.inbox = inbox{}
	t.mu.Unlock()
	t.leaving = in.leave
	for _, q := range in.adopted {
		if err := t.fetch(q); err != nil {
			return err
		}
	}
	for _, a := range in.answered {
		if err := t.answer(a.queue, a.tag, a.finish(), ioCommitAndFetch); err != nil {
			return err
		}
	}
	return nil
}

// fetch asks for a queue's first requests, which makes the queue this thread's.
func (t *thread) fetch(q *queue) error {
	if q.slot = slices.Index(t.queues, nil); q.slot < 0 {
		q.slot = len(t.queues)
		t.queues = append(t.queues, nil)
	}
	t.queues[q.slot], q.thread = q, t
	for tag := range q.tasks {
		if err := t.answer(q, uint16(tag), 0, ioFetch); err != nil {
			return err
		}
	}
	if err := t.ring.submit(); err != nil {
		return err
	}
	close(q.fetched)
	return nil
}

// answer tells the kernel the result of a request, if command says so, and asks
// for the next one with that tag.
func (t *thread) answer(q *queue, tag uint16, res int32, command uint64) error {
	s, err := t.ring.next()
	if err != nil {
		return err
	}
	s.opcode, s.fd, s.off, s.userData = opCommand, int32(q.disk.char), command, uint64(q.slot)<<tagBits|uint64(tag)
	*(*ioCommand)(unsafe.Pointer(&s.payload)) = ioCommand{queue: uint16(q.number), tag: tag, res: res}
	return nil
}

// complete takes a request that came with a tag, or the end of the tag.
func (t *thread) complete(q *queue, tag uint16, res int32) error {
	if res != 0 {
		t.end(q, tag, unix.Errno(-res))
		return nil
	}
	r := q.descriptors[tag]
	t.tally.Count(int(r.op&reqMask), uint64(r.sectors)*sectorSize)
	if err := t.keepTicking(); err != nil {
		return err
	}
	if res, ok := q.prompt(tag); ok {
		return t.answer(q, tag, res, ioCommitAndFetch)
	}
	t.working.Add(1)
	t.handed = true
	q.hand(tag)
	return nil
}

// answered is called by a task's goroutine when it is done.
func (t *thread) answered(a *task) {
	t.post(func(i *inbox) { i.answered = append(i.answered, a) })
	t.working.Done()
}

// end counts a tag that the kernel gave back: the device was stopped, or, with any
// other error than ENODEV, a request can't be served any more.
func (t *thread) end(q *queue, tag uint16, err unix.Errno) {
	if err != unix.ENODEV {
		if !q.lame {
			t.server.cfg.Log.Error("ublk: the kernel took a tag out of service", "device", q.disk.Path(), "queue", q.number, "tag", tag, "error", err)
		}
		q.lame = true
		q.disk.refuse(fmt.Errorf("the kernel does not let this process serve it: %w", err))
	}
	if q.live--; q.live == 0 {
		t.queues[q.slot] = nil
		close(q.ended)
	}
}

// keepTicking has a tick come, unless one will.
func (t *thread) keepTicking() error {
	if t.ticking {
		return nil
	}
	t.ticking = true
	return t.ring.alarm(&t.tell, tokenTick)
}
