package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// control is the driver's command file. Each command has a ring of its own: they
// are rare, and one that waits must not hold up another.
type control struct{ file *os.File }

// Probe fails when this machine can't serve devices, and says why and how to mend
// it.
func Probe() error {
	c, err := openControl()
	if err != nil {
		return err
	}
	return c.file.Close()
}

func openControl() (*control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("ublk: %w: the kernel has not loaded it (modprobe ublk_drv), or is older than 6.0, or was built without it", errors.ErrUnsupported)
	case err != nil:
		return nil, fmt.Errorf("ublk: %w: give the node's user access by a udev rule, or run the node as root", err)
	}
	c := &control{f}
	if err := c.probe(); err != nil {
		return nil, errors.Join(fmt.Errorf("ublk: %w", err), f.Close())
	}
	return c, nil
}

func (c *control) probe() error {
	features := new(uint64)
	err := call(c, ctrlGetFeatures, newID, features)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: the node needs the capability CAP_SYS_ADMIN to make devices", err)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: io_uring is switched off: set the sysctl kernel.io_uring_disabled to 0", err)
	case err != nil:
		return fmt.Errorf("%w: the kernel does not say what its driver can do, and is older than 6.5: %w", errors.ErrUnsupported, err)
	case *features&featuresNeeded != featuresNeeded:
		return fmt.Errorf("%w: the kernel's driver lacks user recovery (features %#x): 6.5 and later have it", errors.ErrUnsupported, *features)
	}
	if !mayAdminister() {
		return fmt.Errorf("%w: the node needs the capability CAP_SYS_ADMIN to make devices", content.ErrForbidden)
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

// address is where something lies that does not move: memory of the kernel's, or
// pinned.
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

// setParams describes a device before it is started.
func (c *control) setParams(id uint32, p params) error {
	p.length = uint32(unsafe.Sizeof(p))
	return call(c, ctrlSetParams, id, &p)
}

// call sends a command with data that the driver reads or writes, and waits for
// its answer.
func call[T any](c *control, command, id uint32, data *T) error {
	var pin runtime.Pinner
	pin.Pin(data)
	defer pin.Unpin()
	return c.send(command, controlCommand{id: id, queue: noQueue, length: uint16(unsafe.Sizeof(*data)), addr: address(data)}, noSignal)
}

// order sends a command without data, which may take long: it is given up, and
// ends soon after, when ctx is done.
func (c *control) order(ctx context.Context, command, id uint32, data int) error {
	result := make(chan error, 1)
	cancel, err := newSignal()
	if err != nil {
		return err
	}
	defer cancel.close()
	go func() {
		result <- c.send(command, controlCommand{id: id, queue: noQueue, data: uint64(data)}, cancel)
	}()
	select {
	case err = <-result:
	case <-ctx.Done():
		cancel.set()
		err = <-result
	}
	if errors.Is(err, errGivenUp) {
		err = context.Cause(ctx)
	}
	return err
}

// errGivenUp says that a command was cancelled.
var errGivenUp = errors.New("given up")

const (
	tokenCommand = iota
	tokenCancel
)

func (c *control) send(command uint32, cmd controlCommand, cancel signal) (err error) {
	runtime.LockOSThread() // a ring is its maker's
	defer runtime.UnlockOSThread()
	r, err := newRing(2, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	s, err := r.next()
	if err != nil {
		return err
	}
	s.opcode, s.fd, s.off, s.userData = opCommand, int32(c.file.Fd()), uint64(command), tokenCommand
	*(*controlCommand)(unsafe.Pointer(&s.payload)) = cmd
	if cancel != noSignal {
		if err := cancel.await(r, tokenCancel); err != nil {
			return err
		}
	}
	if err := errors.Join(r.submit(), r.wait()); err != nil {
		return err
	}
	switch e := r.take(); {
	case e.userData == tokenCancel:
		return errGivenUp
	case e.res < 0:
		return unix.Errno(-e.res)
	}
	return nil
}
