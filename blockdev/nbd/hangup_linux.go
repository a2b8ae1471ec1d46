package nbd

import (
	"time"

	"golang.org/x/sys/unix"
)

// lookNow notes in c.gone whether the other end of the socket is closed.
func (c *conn) lookNow(fd uintptr) {
	want := int16(0) // a full hang-up is always told
	if half(c.socket) {
		want = unix.POLLRDHUP
	}
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: want}}
	n, err := unix.Poll(fds[:], 0)
	c.gone = err == nil && n > 0 && fds[0].Revents&(want|unix.POLLHUP|unix.POLLERR) != 0
}

// linger is how long the next request of a client is waited for that has got all its answers. One that waits for each
// before it asks again is back sooner, and is served without a goroutine's being put to sleep and woken, which takes as
// long as a write. What else its processor has to run may wait as long.
const linger = 200 * time.Microsecond

// comes waits until there is something to read, or for linger.
func comes(fd uintptr) {
	fds, most := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, unix.NsecToTimespec(int64(linger))
	_, _ = unix.Ppoll(fds[:], &most, nil) // a read tells
}
