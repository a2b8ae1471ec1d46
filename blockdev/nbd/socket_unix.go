//go:build linux || darwin

package nbd

import (
	"errors"
	"io"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// nonblocking: tryRead and tryWrite work here.
const nonblocking = true

// tryRead reads once. Before it waits, it gives an empty buffer back.
func (in *input) tryRead(fd uintptr) bool {
	in.hold()
	for lingers := in.lingers; ; {
		n, err := unix.Read(int(fd), (*in.buf)[in.w:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN && lingers:
			lingers = false
			comes(fd)
			continue
		case err == unix.EAGAIN:
			in.drop()
			return false
		case err == nil && n == 0:
			err = io.EOF
		}
		in.w, in.err = in.w+max(n, 0), err
		return true
	}
}

// vectorMax is how many buffers one writev takes, by POSIX's IOV_MAX.
const vectorMax = 1024

// tryWrite writes once and never waits.
func (o *output) tryWrite(fd uintptr) bool {
	for {
		if len(o.rest) == 1 {
			o.wrote, o.failed = unix.Write(int(fd), o.rest[0])
		} else {
			o.wrote, o.failed = unix.Writev(int(fd), o.rest[:min(len(o.rest), vectorMax)])
		}
		switch o.failed {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			o.wrote, o.failed = 0, nil
		}
		o.wrote = max(o.wrote, 0)
		return true
	}
}

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
