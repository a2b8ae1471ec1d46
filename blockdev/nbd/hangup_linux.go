package nbd

import "golang.org/x/sys/unix"

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
