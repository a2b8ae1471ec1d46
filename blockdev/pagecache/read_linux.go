package pagecache

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read fills p with what a regular file has at off, if the kernel holds all of it
// in memory. False means that it doesn't, or that the file ends before; p holds
// anything then. The caller keeps f from being closed meanwhile.
//
// File systems that can't tell are read as they are, and may wait for what is
// behind them.
func Read(f *os.File, p []byte, off int64) bool {
	if len(p) == 0 {
		return true
	}
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	for {
		// What does not wait needs no leave of the runtime, which takes longer.
		n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, f.Fd(), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), uintptr(off>>32), unix.RWF_NOWAIT)
		switch errno {
		case 0:
			return int(n) == len(p)
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			n, _ := f.ReadAt(p, off)
			return n == len(p)
		default:
			return false
		}
	}
}
