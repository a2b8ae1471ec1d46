//go:build linux || darwin

package nbd

import (
	"errors"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// privateSocket sets the mode of a socket before it has a path. Linux gives the
// path that mode; elsewhere the path has the umask's until it is changed.
func privateSocket(_, _ string, raw syscall.RawConn) error {
	if runtime.GOOS != "linux" {
		return nil
	}
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
	return errors.Join(err, failed)
}
