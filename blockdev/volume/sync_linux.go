package volume

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// dataSync makes the data of a file durable, and of its metadata the size.
func dataSync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
