package ublk

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// signal wakes a ring from any goroutine: an eventfd that the ring polls.
type signal int

func newSignal() (signal, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return signal(fd), os.NewSyscallError("eventfd", err)
}

// set makes the ring complete what await asked for, now or once it does.
func (s signal) set() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// Nothing else can fail: the count would have to come to 2^64.
	for _, err := unix.Write(int(s), one[:]); errors.Is(err, unix.EINTR); {
		_, err = unix.Write(int(s), one[:])
	}
}

// clear takes the signal back, before it is awaited again.
func (s signal) clear() {
	var count [8]byte
	for _, err := unix.Read(int(s), count[:]); errors.Is(err, unix.EINTR); {
		_, err = unix.Read(int(s), count[:])
	}
}

// await asks r for one completion with that token when the signal is set.
func (s signal) await(r *ring, token uint64) error {
	e, err := r.next()
	if err != nil {
		return err
	}
	e.opcode, e.fd, e.opFlags, e.userData = opPoll, int32(s), unix.POLLIN, token
	return nil
}

func (s signal) close() error { return unix.Close(int(s)) }
