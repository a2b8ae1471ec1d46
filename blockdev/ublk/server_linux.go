package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/meter"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
)

// Server serves devices as the kernel's. Use: New, Run; the other methods while
// it runs. Safe for concurrent use.
//
// A queue belongs to its thread; a disk's place in the kernel to whoever has
// announced a change of it; the lists to mu, which is taken last.
type Server struct {
	cfg     Config
	control *control
	meter   *meter.Meter
	threads []*thread
	buffers scratch.Pool

	mu      sync.Mutex
	disks   map[*Disk]struct{} // guarded by mu
	numbers map[uint32]*Disk   // guarded by mu: those of the disks that have one
	placed  int                // guarded by mu: queues given to threads so far
	stopped bool               // guarded by mu: no disk is added or stopped any more
	changes sync.WaitGroup     // of disks, under way
	// changing has what gives them up; guarded by mu.
	changing map[*Disk]context.CancelCauseFunc
}

// New opens the driver; its errors are those of Probe.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	control, err := openControl()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, control: control, meter: meter.New("ublk", "read", "write", "flush", "discard", "", "write_zeroes"), disks: map[*Disk]struct{}{}, numbers: map[uint32]*Disk{}, changing: map[*Disk]context.CancelCauseFunc{}}
	for number := range cfg.Threads {
		t, err := newThread(s, number)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.threads = append(s.threads, t)
	}
	return s, nil
}

// Collectors returns the server's metrics.
func (s *Server) Collectors() []prometheus.Collector { return []prometheus.Collector{s.meter.Registry} }

// Run serves until ctx is done. The disks that are not stopped by then stay with
// the kernel, which keeps their requests for the next server. Call it once.
func (s *Server) Run(ctx context.Context) error {
	serving, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	group, serving := errgroup.WithContext(serving)
	for _, t := range s.threads {
		group.Go(func() error { return t.run(serving) })
	}
	unhook := context.AfterFunc(ctx, func() {
		s.settle()
		leave()
	})
	defer unhook()
	err := group.Wait()
	if err != nil {
		err = fmt.Errorf("ublk: %w", err)
	}
	return errors.Join(err, s.close())
}

// change announces a change of a disk; call end after it. Once the server leaves
// there are none.
func (s *Server) change(ctx context.Context, d *Disk) (_ context.Context, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, nil, fmt.Errorf("ublk: %w", content.ErrClosed)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s.changing[d] = cancel
	s.changes.Add(1)
	return ctx, func() {
		cancel(nil)
		s.mu.Lock()
		delete(s.changing, d)
		s.mu.Unlock()
		s.changes.Done()
	}, nil
}

// settle gives up what can be of the changes under way, lets the others end, and no
// more begin. The kernel waits inside of some for requests, without which it could
// neither be left nor be taken up again.
func (s *Server) settle() {
	s.mu.Lock()
	s.stopped = true
	for _, giveUp := range s.changing {
		giveUp(errLeft)
	}
	s.mu.Unlock()
	s.changes.Wait()
}

// close lets go of the kernel when no thread serves any more.
func (s *Server) close() error {
	s.mu.Lock()
	s.stopped = true
	for d := range s.disks {
		d.cancel(errLeft)
	}
	for d := range s.changing { // when a thread has failed
		d.cancel(errLeft)
	}
	s.mu.Unlock()
	s.settle()
	var errs []error
	for _, t := range s.threads {
		errs = append(errs, t.close())
	}
	for d := range s.disks {
		errs = append(errs, d.close())
	}
	return errors.Join(append(errs, s.control.close())...)
}

// Add serves a device. A number below zero lets the kernel choose; with another
// one it is the disk of that number, taken up where the last server left it if it
// was made for the device of that mark: with another one, who has it open would find
// that one's bytes, between those that the kernel has cached. When the number is somebody else's by now, the disk gets
// another. A device that has grown since is a disk of the old size where the kernel
// knows no better and somebody has it open; see Disk.Grow. A device whose beginning can't be read within startTimeout becomes a disk
// whose partitions the kernel does not see.
func (s *Server) Add(ctx context.Context, number int, mark uint32, device blockdev.Device) (*Disk, error) {
	d, err := s.add(ctx, number, mark, device)
	if errors.Is(err, errNotTakenUp) && ctx.Err() == nil {
		s.cfg.Log.Error("ublk: a disk is made anew; who had it open gets errors", "error", err)
		d, err = s.add(ctx, number, mark, device)
	}
	return d, err
}

func (s *Server) add(ctx context.Context, number int, mark uint32, device blockdev.Device) (*Disk, error) {
	d := newDisk(s, mark, device)
	ctx, end, err := s.change(ctx, d)
	if err != nil {
		return nil, err
	}
	defer end()
	s.mu.Lock()
	s.disks[d] = struct{}{}
	s.mu.Unlock()
	if err := d.start(ctx, number); err != nil {
		if !d.made { // else close lets go of it
			s.forget(d)
		}
		return nil, fmt.Errorf("ublk: %w", err)
	}
	return d, nil
}

// claim gives a disk a number, unless another disk of this server has it. The
// kernel's own choice is always free: who had it before is about to forget it.
func (s *Server) claim(d *Disk, id uint32, chosen bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.numbers[id] != nil && !chosen {
		return false
	}
	if s.numbers[d.id] == d { // the number that it asked for, which is somebody else's
		delete(s.numbers, d.id)
	}
	d.id, s.numbers[id] = id, d
	return true
}

func (s *Server) forget(d *Disk) {
	d.cancel(errStopped)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.disks, d)
	if s.numbers[d.id] == d {
		delete(s.numbers, d.id)
	}
}

func (s *Server) place() *thread {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.placed++
	return s.threads[s.placed%len(s.threads)]
}

// owner is what marks the disk of a device in the kernel.
func (s *Server) owner(mark uint32) uint64 { return uint64(s.cfg.Owner)<<32 | uint64(mark) }

// Remove removes a disk of the device of that mark which nobody serves any more, as Stop
// does one that is served. Any other is left as it is, which is success.
func (s *Server) Remove(ctx context.Context, number int, mark uint32, force bool) error {
	_, err := s.remove(ctx, uint32(number), force, func(i info) bool { return i.owner == s.owner(mark) })
	return err
}

// remove is Remove of those that match, and says whether it was one.
func (s *Server) remove(ctx context.Context, id uint32, force bool, match func(info) bool) (matched bool, err error) {
	s.mu.Lock()
	served := s.numbers[id] != nil
	s.mu.Unlock()
	i, err := s.control.info(id)
	switch {
	case served || errors.Is(err, content.ErrNotFound) || err == nil && !match(i):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ublk: %s: %w", devicePath(id), err)
	}
	held := notHeld
	if err = i.servedElsewhere(); err == nil && !force && i.state != stateDead {
		held, err = hold(id)
	}
	if err == nil {
		err = s.control.remove(ctx, id, held)
	}
	if err != nil {
		return true, fmt.Errorf("ublk: %w", err)
	}
	return true, nil
}

// Sweep removes the disks of this owner that keep does not name, by number and mark,
// whoever uses them: nobody will ever serve them again. It returns their numbers. A disk
// that another process serves, which has the same Owner by mistake, stays.
func (s *Server) Sweep(ctx context.Context, keep func(number int, mark uint32) bool) ([]int, error) {
	paths, err := filepath.Glob("/sys/class/ublk-char/ublkc*")
	if err != nil {
		return nil, err
	}
	var swept []int
	var errs []error
	for _, path := range paths {
		number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), "ublkc"))
		if err != nil {
			continue
		}
		switch ours, err := s.remove(ctx, uint32(number), true, func(i info) bool {
			return uint32(i.owner>>32) == s.cfg.Owner && !keep(number, uint32(i.owner))
		}); {
		case err != nil:
			errs = append(errs, err)
		case ours:
			swept = append(swept, number)
		}
	}
	return swept, errors.Join(errs...)
}

// servedElsewhere fails with content.ErrConflict when another process is at the
// device. One that has died may be named there until the kernel sees that.
func (i info) servedElsewhere() error {
	if i.state != stateLive || i.pid == int32(os.Getpid()) || errors.Is(unix.Kill(int(i.pid), 0), unix.ESRCH) {
		return nil
	}
	return fmt.Errorf("%s: %w: process %d serves it, which takes itself for this node", devicePath(i.id), content.ErrConflict, i.pid)
}
