package guest

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// transferMax is the longest read or write of a Device, in bytes.
const transferMax = 1 << 20

// Device is a block device of the kernel, past its page cache. One goroutine uses it.
type Device struct {
	file *os.File
	page []byte // where the kernel may read and write it
}

// OpenDevice opens a device; Close lets go of it.
func OpenDevice(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	page, err := unix.Mmap(-1, 0, transferMax, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mmap: %w", err), f.Close())
	}
	return &Device{f, page}, nil
}

// Close lets go of it.
func (d *Device) Close() error { return errors.Join(d.file.Close(), unix.Munmap(d.page)) }

// ReadAt is that of io.ReaderAt.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		part := d.page[:min(len(p)-done, len(d.page))]
		if _, err := d.file.ReadAt(part, off+int64(done)); err != nil {
			return done, err
		}
		done += copy(p[done:], part)
	}
	return len(p), nil
}

// WriteAt is that of io.WriterAt.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n := copy(d.page, p[done:])
		if _, err := d.file.WriteAt(d.page[:n], off+int64(done)); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// Sync is a flush of the device.
func (d *Device) Sync() error { return d.file.Sync() }

// Trim is a discard.
func (d *Device) Trim(off, n int64) error { return d.span(unix.BLKDISCARD, "discard", off, n) }

// Zero writes zeros without sending them.
func (d *Device) Zero(off, n int64) error { return d.span(unix.BLKZEROOUT, "zero", off, n) }

func (d *Device) span(request uintptr, what string, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), request, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return fmt.Errorf("%s %d bytes at %d: %w", what, n, off, errno)
	}
	return nil
}
