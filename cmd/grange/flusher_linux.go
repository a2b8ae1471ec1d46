package main

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// becomeFlusher tells the kernel that this process serves disks: when memory is short it must not wait until something is
// written to them, which waits for it. Threads and programs that it starts from then on have that from it.
func becomeFlusher() error {
	_, _, errno := syscall.AllThreadsSyscall(syscall.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0)
	switch {
	case errno == 0:
		return nil
	case errors.Is(errno, errors.ErrUnsupported): // of the runtime
		return fmt.Errorf("when memory is short they may hang: %w: this program was built with cgo", errno)
	}
	return fmt.Errorf("when memory is short they may hang: %w: give the node the capability CAP_SYS_RESOURCE", errno)
}
