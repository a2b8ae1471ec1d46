package journal

import (
	"errors"
	"io"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DataSync makes the data of a file durable, and of its metadata the size.
func DataSync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// sole reports whether a file has but one name.
func sole(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Nlink == 1
}

// prefetch has the kernel read a file into its memory, without waiting for that.
func prefetch(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_WILLNEED) } // it is a hint

// WriteVector writes parts one after the other to off of a file, and returns how many
// bytes are there.
func WriteVector(f *os.File, parts [][]byte, off int64) (n int64, err error) {
	var room [VectorMax]unix.Iovec
	for len(parts) > 0 {
		vector := room[:0]
		for _, p := range parts {
			v := unix.Iovec{Base: unsafe.SliceData(p)}
			v.SetLen(len(p))
			vector = append(vector, v)
		}
		wrote, _, errno := unix.Syscall6(unix.SYS_PWRITEV, f.Fd(), uintptr(unsafe.Pointer(&vector[0])), uintptr(len(vector)), uintptr(off+n), uintptr((off+n)>>32), 0)
		runtime.KeepAlive(parts)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return n, errno
		case wrote == 0:
			return n, io.ErrShortWrite
		}
		n += int64(wrote)
		for ; len(parts) > 0 && int(wrote) >= len(parts[0]); parts = parts[1:] {
			wrote -= uintptr(len(parts[0]))
		}
		if wrote > 0 { // a part of one: the rest goes by itself
			m, err := f.WriteAt(parts[0][wrote:], off+n)
			if n += int64(m); err != nil {
				return n, err
			}
			parts = parts[1:]
		}
	}
	return n, nil
}
