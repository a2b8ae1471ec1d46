package gate

import (
	"time"

	"golang.org/x/sys/unix"
)

// boottime goes on while the host sleeps.
func boottime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // every kernel has it
	return time.Duration(t.Nano())
}
