package cache

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"

	"github.com/grangemesh/grange/origin/content"
)

// openTable never finds an index: on Windows it is kept in memory only, and made
// anew from the names at each start.
func openTable(string) (*table, error) { return nil, os.ErrNotExist }

func createTable(_ string, size shape, s secret) (*table, error) {
	raw := make([]byte, size.bytes())
	fillHeader(raw, size, s)
	return newTable(raw)
}

func installTable(string) error { return nil }

func syncHeader([]byte) error { return nil }

func mapFile(path string) (b []byte, unmap func() error, err error) {
	b, err = os.ReadFile(path)
	return b, func() error { return nil }, err
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
