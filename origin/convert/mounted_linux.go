package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/grangemesh/grange/origin/convert/files"
	"golang.org/x/sys/unix"
)

// mounted is a file system that the kernel writes. It is mounted nowhere: a
// descriptor leads to it, so that nothing stays behind whatever happens to us.
type mounted struct {
	*files.Place
	loop *os.File
}

// mountable says why no file system can be mounted here; nil when one can.
func mountable() error {
	fd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	f, err := freeLoop()
	if err == nil {
		err = f.Close()
	}
	return errors.Join(err, unix.Close(fd))
}

func freeLoop() (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
	}
	return os.OpenFile("/dev/loop"+strconv.Itoa(number), os.O_RDWR, 0)
}

// attach gives a file a loop device, which goes with its last user.
func attach(f *os.File) (*os.File, error) {
	for {
		loop, err := freeLoop()
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return loop, nil
		}
		err = errors.Join(os.NewSyscallError("LOOP_CONFIGURE", err), loop.Close())
		if !errors.Is(err, unix.EBUSY) { // another was quicker
			return nil, err
		}
	}
}

func mount(ctx context.Context, f *os.File, lost losses) (*mounted, error) {
	loop, err := attach(f)
	if err != nil {
		return nil, err
	}
	fail := func(what string, err error) (*mounted, error) {
		return nil, errors.Join(fmt.Errorf("mount: %w", os.NewSyscallError(what, err)), loop.Close())
	}
	fd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("fsopen", err)
	}
	defer unix.Close(fd)
	err = errors.Join(unix.FsconfigSetString(fd, "source", loop.Name()), unix.FsconfigSetFlag(fd, "discard"), unix.FsconfigCreate(fd))
	if err != nil {
		return fail("fsconfig", err)
	}
	root, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOATIME|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fail("fsmount", err)
	}
	place, err := files.NewPlace(root, lost.add)
	m := &mounted{place, loop}
	if err != nil {
		return nil, errors.Join(err, m.free(ctx))
	}
	return m, nil
}

// lostAndFound is the file system's own.
const lostAndFound = "lost+found"

func (m *mounted) prune(facts map[string]fact) error {
	return m.Prune(func(path string, folder bool) bool {
		f, ok := facts[path]
		return ok && f.folder == folder || path == lostAndFound
	})
}

func (m *mounted) put(ctx context.Context, e *files.Entry) error { return m.Put(ctx, e) }

// close waits until all is in the file.
func (m *mounted) close(ctx context.Context) error {
	return errors.Join(m.Close(), m.free(ctx))
}

// unmountMax bounds the wait for a file system that others may look at for a moment.
const unmountMax = time.Minute

// free waits until the file is no file system's any more.
func (m *mounted) free(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountMax)
	defer cancel()
	tick := time.Tick(10 * time.Millisecond)
	for { // the device can be had alone once it is no file system's
		fd, err := unix.Open(m.loop.Name(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
			return errors.Join(m.loop.Sync(), m.loop.Close())
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("unmount: %w", err), m.loop.Close())
		}
	}
}
