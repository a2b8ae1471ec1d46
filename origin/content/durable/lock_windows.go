package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// IsFull reports whether what failed needs space of the disk.
func IsFull(err error) bool { return errors.Is(err, windows.ERROR_DISK_FULL) }

// TryLock takes a lock that ends when f is closed or its process dies; false means that another has it. It
// lies far behind the end of any file, as the system's locks keep others from reading.
func TryLock(f *os.File) (bool, error) {
	at := windows.Overlapped{OffsetHigh: 1 << 30}
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
		return false, nil
	}
	return err == nil, err
}
