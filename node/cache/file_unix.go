//go:build unix

package cache

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

func openTable(path string) (*table, error) {
	raw, unmap, err := mapFile(path, true)
	if err != nil {
		return nil, err
	}
	t, err := newTable(raw)
	if err != nil {
		return nil, errors.Join(err, unmap())
	}
	runtime.AddCleanup(t, func(unmap func() error) { unmap() }, unmap)
	return t, nil
}

// createTable makes an empty index file, which installTable puts at path. Its space is
// allocated: a mapped write to a full disk would end the process.
func createTable(path string, size shape, s secret) (*table, error) {
	path += ".new"
	os.Remove(path) // not truncated: another table may still be mapped to it
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	defer f.Close()
	header := make([]byte, headerSize)
	fillHeader(header, size, s)
	if err = allocate(f, 0, int64(size.bytes())); err == nil {
		_, err = f.WriteAt(header, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("index of %d bytes: %w", size.bytes(), err), os.Remove(path))
	}
	return openTable(path)
}

// installTable makes the table that createTable made the one at path.
func installTable(path string) error {
	if err := os.Rename(path+".new", path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("index: %w", err)
	}
	return nil
}

func syncHeader(raw []byte) error { return unix.Msync(raw[:headerSize], unix.MS_SYNC) }

func mapFile(path string, write bool) (b []byte, unmap func() error, err error) {
	mode, protection := os.O_RDONLY, unix.PROT_READ
	if write {
		mode, protection = os.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if info.Size() == 0 {
		return nil, func() error { return nil }, nil
	}
	b, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map %d bytes of %s: %w", info.Size(), path, err)
	}
	return b, func() error { return unix.Munmap(b) }, nil
}

// DiskFree returns what may be written to the disk of a folder, and its size without what the
// file system keeps back, in bytes.
func DiskFree(dir string) (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return st.Bavail * uint64(st.Bsize), (st.Blocks - st.Bfree + st.Bavail) * uint64(st.Bsize), nil
}
