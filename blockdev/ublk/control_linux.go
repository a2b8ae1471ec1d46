package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// control is the driver's command file, and rings for its commands: one each, since a
// command that waits must not hold up another. Rings are used again, so that what was
// begun can be ended by a process that has no file descriptor left.
type control struct {
	file     *os.File
	rings    chan *ring // those that are idle
	features uint64     // the driver's
}

// ringsIdle is how many rings stay: commands are rare.
const ringsIdle = 4

// Probe fails when this machine can't serve devices, and says why and how to mend
// it.
func Probe() error {
	c, err := openControl()
	if err != nil {
		return err
	}
	return c.close()
}

func openControl() (*control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("ublk: %w: the kernel has not loaded it (modprobe ublk_drv), or is older than 6.5, or was built without it", errors.ErrUnsupported)
	case err != nil:
		return nil, fmt.Errorf("ublk: %w: give the node's user access by a udev rule, or run the node as root", err)
	}
	c := &control{file: f, rings: make(chan *ring, ringsIdle)}
	if err := c.probe(); err != nil {
		return nil, errors.Join(fmt.Errorf("ublk: %w", err), c.close())
	}
	return c, nil
}

// close lets go of the driver; no command may be under way.
func (c *control) close() error {
	err := c.file.Close()
	for len(c.rings) > 0 {
		err = errors.Join(err, (<-c.rings).close())
	}
	return err
}

func (c *control) probe() error {
	if !mayAdminister() {
		return fmt.Errorf("%w: the node needs the capability CAP_SYS_ADMIN to make devices", content.ErrForbidden)
	}
	r, err := newCommandRing()
	if err != nil {
		return fmt.Errorf("%w: %w: the kernel lets nobody use io_uring here: see the sysctl kernel.io_uring_disabled, and the seccomp profile of a container", errors.ErrUnsupported, err)
	}
	c.rings <- r
	features := new(uint64)
	err = call(c, ctrlGetFeatures, newID, features)
	c.features = *features
	switch {
	case err != nil:
		return fmt.Errorf("%w: the kernel does not say what its driver can do, and is older than 6.5: %w", errors.ErrUnsupported, err)
	case c.features&featuresNeeded != featuresNeeded:
		return fmt.Errorf("%w: the kernel's driver lacks user recovery or user copy (features %#x): 6.5 and later have it", errors.ErrUnsupported, c.features)
	}
	return nil
}

// mayAdminister reports whether this process has CAP_SYS_ADMIN: without it the
// driver makes devices that can't be recovered.
func mayAdminister() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// address is where something lies that does not move: in the heap, or pinned.
func address[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }

// info asks the kernel about a device; content.ErrNotFound means that there is
// none.
func (c *control) info(id uint32) (info, error) {
	i := new(info)
	err := call(c, ctrlGetInfo, id, i)
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: %w", content.ErrNotFound, err)
	}
	return *i, err
}

// add makes a device as i says and returns what the kernel made of it.
func (c *control) add(i info) (info, error) {
	made := &i
	err := call(c, ctrlAdd, i.id, made)
	return *made, err
}

// params asks the kernel how a device was described to it.
func (c *control) params(id uint32) (params, error) {
	p := new(params)
	p.length = uint32(unsafe.Sizeof(*p))
	err := call(c, ctrlGetParams, id, p)
	return *p, err
}

func (c *control) setParams(id uint32, p params) error {
	p.length = uint32(unsafe.Sizeof(p))
	return call(c, ctrlSetParams, id, &p)
}

// resize has the users of a device see that it has so many sectors.
func (c *control) resize(ctx context.Context, id uint32, sectors uint64) error {
	if c.features&featureResize == 0 {
		return fmt.Errorf("%s keeps its size: %w: Linux changes that of a disk in use from 6.16 on; detach the volume, and attach it", devicePath(id), errors.ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.order(ctx, ctrlUpdateSize, id, int(sectors)); err != nil {
		return fmt.Errorf("tell the kernel the size of %s: %w", devicePath(id), err)
	}
	return nil
}

const (
	// recoverTimeout is how long the server before may take to be gone. Where the
	// kernel has not been told to look sooner, it takes 30 s to see that a server
	// has died which had all requests of a queue.
	recoverTimeout  = 90 * time.Second
	recoverPauseMax = 50 * time.Millisecond
	// deleteTimeout is how long a number may take to be free again; what was not
	// in use takes milliseconds.
	deleteTimeout = 2 * time.Second
)

var (
	// errBegun says that somebody has begun a recovery and not ended it.
	errBegun = errors.New("its recovery was begun before")
	// errServed says that somebody has or had a part in serving the device.
	errServed = errors.New("it can't be served by this process")
)

// startRecovery waits until the process that served a device before is gone.
func (c *control) startRecovery(ctx context.Context, i info) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, recoverPauseMax) {
		err := c.order(ctx, ctrlStartRecovery, i.id, 0)
		switch {
		case errors.Is(err, unix.EINVAL):
			return errBegun
		case err != nil && ctx.Err() != nil: // it may have ended inside of the order
			return fmt.Errorf("process %d has served it: %w", i.pid, context.Cause(ctx))
		case !errors.Is(err, unix.EBUSY):
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("process %d serves it still: %w", i.pid, context.Cause(ctx))
		}
	}
}

// delete removes a stopped device. It returns when its number is free, or after
// deleteTimeout: the kernel frees it when who still has the disk open lets go.
func (c *control) delete(ctx context.Context, id uint32) error {
	for {
		brief, cancel := context.WithTimeout(ctx, deleteTimeout)
		err := c.order(brief, ctrlDelete, id, 0)
		late := brief.Err() != nil
		cancel()
		switch {
		case !late:
			return err
		case !errors.Is(err, errNotReached):
			return nil
		case ctx.Err() != nil:
			return err
		}
	}
}

// stop takes the disk of a device from its users, and closes what hold returned.
// None is success.
func (c *control) stop(ctx context.Context, id uint32, held int) error {
	err := c.order(ctx, ctrlStop, id, 0)
	if errors.Is(err, unix.ENODEV) {
		err = nil
	}
	if held != notHeld {
		err = errors.Join(err, unix.Close(held))
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", devicePath(id), err)
	}
	return nil
}

// remove stops and deletes a device that this process does not serve.
func (c *control) remove(ctx context.Context, id uint32, held int) error {
	if err := c.stop(ctx, id, held); err != nil {
		return err
	}
	if err := c.delete(ctx, id); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", devicePath(id), err)
	}
	return nil
}

// callTimeout is how long a command with data may take, which waits for nothing.
const callTimeout = 10 * time.Second

// call sends a command with data that the driver reads or writes, and waits for
// its answer.
func call[T any](c *control, command, id uint32, data *T) error {
	var pin runtime.Pinner
	pin.Pin(data)
	defer pin.Unpin()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return c.send(ctx, command, controlCommand{id: id, queue: noQueue, length: uint16(unsafe.Sizeof(*data)), addr: address(data)})
}

// errNotReached says that the kernel had not come to a command when it was cancelled.
var errNotReached = errors.New("the kernel did not come to it")

// order sends a command without data, which may take long, and cancels it when
// ctx is done: an error is the cause of that then. No error means that it was done
// all the same.
func (c *control) order(ctx context.Context, command, id uint32, data int) error {
	err := c.send(ctx, command, controlCommand{id: id, queue: noQueue, data: uint64(data)})
	switch {
	case ctx.Err() == nil:
	case errors.Is(err, unix.ECANCELED):
		err = fmt.Errorf("%w: %w", errNotReached, context.Cause(ctx))
	case errors.Is(err, unix.EINTR) || errors.Is(err, unix.ETIME):
		err = context.Cause(ctx)
	}
	return err
}

const (
	tokenCommand = iota
	tokenCancelled
	tokenPatience
)

// patienceSeconds is how long a command may take to notice that it was cancelled.
// Those that wait for requests don't.
const patienceSeconds = 1

// send sends a command and waits for its result. When ctx ends it is cancelled;
// one that does not notice is left to itself, which is ETIME.
func (c *control) send(ctx context.Context, command uint32, cmd controlCommand) error {
	runtime.LockOSThread() // a command ends with the thread that has sent it
	defer runtime.UnlockOSThread()
	r, err := c.ring(ctx)
	if err != nil {
		return err
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	patience := &unix.Timespec{Sec: patienceSeconds}
	pin.Pin(patience)
	s, err := r.next()
	if err == nil {
		s.opcode, s.fd, s.off, s.userData = opCommand, int32(c.file.Fd()), uint64(command), tokenCommand
		*(*controlCommand)(unsafe.Pointer(&s.payload)) = cmd
		err = r.submit()
	}
	if err != nil {
		return errors.Join(err, r.close())
	}
	cancelled := make(chan error, 1)
	unhook := context.AfterFunc(ctx, func() {
		cancelled <- errors.Join(r.cancel(tokenCommand, tokenCancelled), r.alarm(patience, tokenPatience), r.submit())
	})
	res, err := result(r)
	clean := unhook()
	if !clean {
		err = errors.Join(err, <-cancelled)
	}
	if !clean || err != nil { // what is left of it would be taken for the next command's
		err = errors.Join(err, r.close())
		r, _ = newCommandRing() // the file of that one is free
	}
	c.give(r)
	if res < 0 && err == nil {
		err = unix.Errno(-res)
	}
	return err
}

// result waits for that of a command, or for the end of patience with it.
func result(r *ring) (res int32, err error) {
	for {
		if err := r.wait(); err != nil {
			return 0, err
		}
		if e := r.take(); e.userData != tokenCancelled {
			return e.res, nil
		}
	}
}

// ring lends a ring for one command; when there are no files for another, it waits for
// one that is idle.
func (c *control) ring(ctx context.Context) (*ring, error) {
	for {
		select {
		case r := <-c.rings:
			return r, nil
		default:
		}
		r, err := newCommandRing()
		if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ENOMEM) {
			return r, err
		}
		select {
		case <-time.After(openPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// give takes a ring back, if it is one.
func (c *control) give(r *ring) {
	if r == nil {
		return
	}
	select {
	case c.rings <- r:
	default:
		_ = r.close()
	}
}

func newCommandRing() (*ring, error) { return newRing(4, setupSQE128) }
