package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Line is a slow way: so many bytes a second and so much delay in each direction.
type Line struct {
	Rate  int
	Delay time.Duration
}

const (
	// lineQueue is what may wait for a line: as much as routers hold back for one.
	lineQueue = 50 * time.Millisecond
	// linePackets is how many packets it may hold, and frameMax how long each is.
	linePackets = 16 << 10
	frameMax    = 2 << 10
)

// shaper is a cable that carries frames between two TAP devices at a line's pace; all in
// this process, as a kernel may have no netem.
type shaper struct {
	line    Line
	ends    [2]*os.File
	carried [2]atomic.Int64 // bytes, out of each end
	pumps   sync.WaitGroup
}

// FarHost is Host at the far end of a line. Its processes' time is this process's too.
func (n *Network) FarHost(ctx context.Context, lanName string, line Line) (*Host, error) {
	return n.host(ctx, lanName, func(_ context.Context, h *Host, port string) error {
		s := &shaper{line: line}
		h.line = s
		n.lines = append(n.lines, s)
		for i, at := range []struct{ namespace, device string }{{h.namespace, "eth0"}, {h.lan.router, port}} {
			err := (&Host{namespace: at.namespace}).Inside(func() (err error) {
				s.ends[i], err = tap(at.device)
				return err
			})
			if err != nil {
				return fmt.Errorf("TAP device %s: %w", at.device, err)
			}
		}
		for i := range s.ends {
			s.pump(s.ends[i], s.ends[1-i], &s.carried[i])
		}
		return nil
	})
}

// Carried returns how many bytes of frames the host's line has taken, both ways.
func (h *Host) Carried() (up, down int64) {
	return h.line.carried[0].Load(), h.line.carried[1].Load()
}

// tap opens a TAP device in the network of this thread.
func tap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// sleep waits in the kernel, whose timer is precise where the runtime's is a millisecond
// late.
func sleep(d time.Duration) {
	for d > 0 {
		left := unix.NsecToTimespec(int64(d))
		if unix.Nanosleep(&left, &left) == nil {
			return
		}
		d = time.Duration(left.Nano())
	}
}

// pump carries frames one way until the ends are closed. Those that would wait longer
// than lineQueue are lost.
func (s *shaper) pump(from, to *os.File, carried *atomic.Int64) {
	type frame struct {
		bytes []byte
		due   time.Time
	}
	way := make(chan frame, linePackets)
	s.pumps.Go(func() {
		defer close(way)
		var sent time.Time // when the last frame has left
		for {
			b := make([]byte, frameMax)
			k, err := from.Read(b)
			if err != nil {
				return
			}
			now := time.Now()
			if sent.Before(now) {
				sent = now
			}
			if sent.Sub(now) > lineQueue {
				continue
			}
			sent = sent.Add(time.Duration(k) * time.Second / time.Duration(s.line.Rate))
			carried.Add(int64(k))
			way <- frame{b[:k], sent.Add(s.line.Delay)}
		}
	})
	s.pumps.Go(func() {
		for f := range way {
			sleep(time.Until(f.due))
			_, _ = to.Write(f.bytes) // one that the other end can't take is lost
		}
	})
}

func (s *shaper) close() error {
	var errs []error
	for _, end := range s.ends {
		if end != nil {
			errs = append(errs, end.Close())
		}
	}
	s.pumps.Wait()
	return errors.Join(errs...)
}
