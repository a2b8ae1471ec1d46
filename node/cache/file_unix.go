//go:build unix

package cache

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// openTable maps an index file.
func openTable(path string) (*table, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < indexHeader {
		return nil, fmt.Errorf("cache index: %w: %d bytes", content.ErrCorrupt, info.Size())
	}
	raw, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("cache index: map %d bytes: %w", info.Size(), err)
	}
	t, err := newTable(raw)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(raw))
	}
	runtime.AddCleanup(t, func(raw []byte) { unix.Munmap(raw) }, raw)
	return t, nil
}

// createTable makes an empty index file in the place of any other. Its space is
// allocated: a mapped write to a full disk would end the process.
func createTable(path string, n uint64, secret [2]uint64) (*table, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("cache index: %w", err)
	}
	defer f.Close()
	size := int64(indexHeader + n*entrySize)
	if err := allocate(f, size); err != nil {
		return nil, errors.Join(fmt.Errorf("cache index of %d bytes: %w", size, err), os.Remove(path))
	}
	header := make([]byte, indexHeader)
	writeIndexHeader(header, n, secret[0], secret[1])
	if _, err := f.WriteAt(header, 0); err != nil {
		return nil, fmt.Errorf("cache index: %w", err)
	}
	return openTable(path)
}

// lock keeps other processes out of the folder; it ends with the process.
func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: another process has it open", content.ErrConflict), f.Close())
	}
	return f.Close, nil
}

func diskFree(dir string) (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return st.Bavail * uint64(st.Bsize), st.Blocks * uint64(st.Bsize), nil
}
