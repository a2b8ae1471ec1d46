package volume

import (
	"os"

	"golang.org/x/sys/unix"
)

// dataSync makes the data of a file durable, and of its metadata the size.
func dataSync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
