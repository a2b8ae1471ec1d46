package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// writerByte is what QEMU and its tools lock of a file that they write to: 100, and
// the number of that permission.
const writerByte = 101

// inUse refuses a disk that a virtual machine writes to, and a device that is mounted.
func inUse(f *os.File, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		exclusive, err := unix.Open(f.Name(), unix.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%w: it is mounted or in use otherwise; unmount it, or import a snapshot", content.ErrConflict)
		}
		if err == nil {
			err = unix.Close(exclusive)
		}
		return err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: writerByte, Len: 1}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	if err == nil && lock.Type != unix.F_UNLCK {
		return fmt.Errorf("%w: a virtual machine or a tool writes to it; import when it has stopped, or a snapshot", content.ErrConflict)
	}
	return nil // a file system without locks can't tell
}

func sameMoment(a, b fs.FileInfo) bool {
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	return x.Size == y.Size && x.Mtim == y.Mtim && x.Ctim == y.Ctim
}
