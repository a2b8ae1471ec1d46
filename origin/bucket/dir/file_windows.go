package dir

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// inode is 0: the times that Windows keeps are fine enough.
func inode(fs.FileInfo) uint64 { return 0 }

func isReadOnly(error) bool { return false }

func isFull(err error) bool { return errors.Is(err, windows.ERROR_DISK_FULL) }

// lockFile takes a lock that ends with the process.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK, 0, 1, 0, new(windows.Overlapped)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}
