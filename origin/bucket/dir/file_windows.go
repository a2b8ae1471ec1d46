package dir

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// inode is 0: the times that Windows keeps are fine enough.
func inode(fs.FileInfo) uint64 { return 0 }

func isReadOnly(err error) bool { return errors.Is(err, windows.ERROR_WRITE_PROTECT) }

func isFull(err error) bool { return errors.Is(err, windows.ERROR_DISK_FULL) }

// isNotFolder reports whether a part of a path is a file.
func isNotFolder(err error) bool { return errors.Is(err, windows.ERROR_DIRECTORY) }

// tryLock takes a lock that ends when f is closed or its process dies. It lies
// far behind the end of any file, as Windows locks keep others from reading.
func tryLock(f *os.File) bool {
	at := windows.Overlapped{OffsetHigh: 1 << 30}
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at) == nil
}
