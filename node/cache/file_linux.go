package cache

import (
	"encoding/hex"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// allocate gets disk for a part of a file, which is as long then.
func allocate(f *os.File, off, length int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, off, length)
	if err == unix.EOPNOTSUPP {
		return extend(f, off+length)
	}
	return err
}

func punchHole(f *os.File, off, length int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

// bootID tells one run of the kernel from another; zeros when it is not known.
func bootID() (id [16]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err == nil {
		copy(id[:], b)
	}
	return id
}
