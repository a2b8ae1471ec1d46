package cache

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"

	"github.com/grangemesh/grange/origin/content"
)

// openTable never finds an index: on Windows it is kept in memory only, and a
// seed starts with an empty cache.
func openTable(string) (*table, error) { return nil, os.ErrNotExist }

func createTable(_ string, n uint64, secret [2]uint64) (*table, error) {
	raw := make([]byte, indexHeader+n*entrySize)
	writeIndexHeader(raw, n, secret[0], secret[1])
	return newTable(raw)
}

func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped)); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: another process has it open", content.ErrConflict), f.Close())
	}
	return f.Close, nil
}

func diskFree(dir string) (free, total uint64, err error) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, 0, err
	}
	err = windows.GetDiskFreeSpaceEx(path, &free, &total, nil)
	return free, total, err
}
