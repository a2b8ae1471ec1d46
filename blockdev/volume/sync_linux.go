package volume

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// dataSync makes the data of a file durable, and of its metadata the size.
func dataSync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for failed = unix.Fdatasync(int(fd)); errors.Is(failed, unix.EINTR); {
			failed = unix.Fdatasync(int(fd))
		}
	})
	return errors.Join(err, failed)
}
