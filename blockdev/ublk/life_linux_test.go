package ublk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestDiskOfALivingServerIsLeftAlone adds a disk that another serves still, and one
// that nobody does by a call that is given up: neither loses it.
func TestDiskOfALivingServerIsLeftAlone(t *testing.T) {
	m := newMemory(1 << 20)
	old, leave := serve(t, ublk.Config{})
	d, err := old.Add(t.Context(), -1, 0, m)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := serve(t, ublk.Config{})
	brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Add(brief, d.Number(), 0, m); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("the disk of a living server: %v", err)
	}
	if _, err := read(d.Path(), 0); err != nil {
		t.Errorf("the living server: %v", err)
	}
	leave()
	waited := make(chan error, 1)
	go func() { _, err := read(d.Path(), 8192); waited <- err }()
	again, err := s.Add(brief, d.Number(), 0, m)
	if errors.Is(err, context.DeadlineExceeded) { // else it was sooner done than given up
		again, err = s.Add(t.Context(), d.Number(), 0, m)
	}
	if err != nil || again.Number() != d.Number() {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("who waited meanwhile: %v", err)
	}
	if err := again.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestServerOfAFullQueueIsFollowed ends a server that has each request that a queue
// can have: the kernel is slow to see that, unless told to look as the README's rule
// for udev does.
func TestServerOfAFullQueueIsFollowed(t *testing.T) {
	const depth = 4
	m := newMemory(1 << 20)
	old, leave := serve(t, ublk.Config{Queues: 1, Depth: depth})
	d, err := old.Add(t.Context(), -1, 0, m)
	if err != nil {
		t.Fatal(err)
	}
	shell(t, filepath.Base(d.Path()), "echo 1000 >/sys/block/$DISK/queue/io_timeout")
	m.held = func(int64) <-chan struct{} { return make(chan struct{}) }
	var group errgroup.Group
	for i := range int64(depth) {
		group.Go(func() error { _, err := read(d.Path(), i<<16); return err })
		<-m.waiting
	}
	leave()
	s, _ := serve(t, ublk.Config{})
	again, err := s.Add(t.Context(), d.Number(), 0, newMemory(1<<20))
	if err != nil || again.Number() != d.Number() {
		t.Fatal(err)
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if err := again.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestTakenUpWhileARequestWaits follows a server one of whose requests no source
// answers: neither the next server nor the other requests wait for that one.
func TestTakenUpWhileARequestWaits(t *testing.T) {
	const stuck = 512 << 10
	release := make(chan struct{})
	silent := func() *memory {
		m := newMemory(1 << 20)
		copy(m.data[stuck:], "late")
		m.held = func(off int64) <-chan struct{} {
			if off == stuck {
				return release
			}
			return nil
		}
		return m
	}
	first := silent()
	old, leave := serve(t, ublk.Config{})
	d, err := old.Add(t.Context(), -1, 0, first)
	if err != nil {
		t.Fatal(err)
	}
	late := make(chan error, 1)
	go func() {
		p, err := read(d.Path(), stuck)
		if err == nil && !bytes.HasPrefix(p, []byte("late")) {
			err = fmt.Errorf("it read %.4q", p)
		}
		late <- err
	}()
	<-first.waiting
	leave()
	s, _ := serve(t, ublk.Config{})
	again, err := s.Add(t.Context(), d.Number(), 0, silent())
	if err != nil || again.Number() != d.Number() {
		t.Fatalf("the next server: %v", err)
	}
	if _, err := read(d.Path(), 0); err != nil {
		t.Errorf("what is there: %v", err)
	}
	close(release)
	if err := <-late; err != nil {
		t.Errorf("what waited: %v", err)
	}
	if err := again.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestLeftUnderLoad has one server follow the other in a process that lives on, as one
// that hands over does, while requests keep coming: none is lost, none fails.
func TestLeftUnderLoad(t *testing.T) {
	const size, readers, block = 8 << 20, 16, 4096
	m, number, path := newMemory(size), -1, ""
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	var group errgroup.Group
	var d *ublk.Disk
	for i := range soak.Rounds(100) {
		s, leave := serve(t, ublk.Config{})
		var err error
		if d, err = s.Add(t.Context(), number, 0, m); err != nil || i > 0 && d.Number() != number {
			t.Fatalf("server %d: %v", i, err)
		}
		if i == 0 {
			number, path = d.Number(), d.Path()
			for reader := range int64(readers) {
				group.Go(func() error {
					for at := reader * block; ctx.Err() == nil; at = (at + readers*block) % size {
						if _, err := read(path, at); err != nil {
							return err
						}
					}
					return nil
				})
			}
		}
		if _, err := read(path, 0); err != nil {
			t.Fatal(err)
		}
		if i < soak.Rounds(100)-1 {
			leave()
		}
	}
	enough()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if err := d.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestDeviceOfAnotherSizeIsMadeAnew takes up a disk for a device that has shrunk: not
// while somebody has it open, who goes on with one that has grown, and sees that where
// the kernel can tell.
func TestDeviceOfAnotherSizeIsMadeAnew(t *testing.T) {
	old, leave := serve(t, ublk.Config{})
	d, err := old.Add(t.Context(), -1, 0, newMemory(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	user, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	leave()
	s, leave := serve(t, ublk.Config{})
	if _, err := s.Add(t.Context(), d.Number(), 0, newMemory(1<<19)); !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), "open in process") {
		t.Errorf("a disk that somebody has open: %v", err)
	}
	again, err := s.Add(t.Context(), d.Number(), 0, newMemory(2<<20))
	if err != nil || again.Number() != d.Number() {
		t.Fatalf("one that has grown: %v", err)
	}
	if _, err := user.ReadAt(make([]byte, 4096), 1<<20-4096); err != nil {
		t.Error(err)
	}
	got := shell(t, again.Path(), "blockdev --getsize64 $DISK")
	switch err := again.Grow(t.Context()); {
	case err == nil && got != "2097152\n", err != nil && (!errors.Is(err, errors.ErrUnsupported) || got != "1048576\n"):
		t.Errorf("the disk has %s: %v", got, err)
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	leave()
	s, _ = serve(t, ublk.Config{})
	grown, err := s.Add(t.Context(), d.Number(), 0, newMemory(3<<20))
	if err != nil || grown.Number() != d.Number() {
		t.Fatal(err)
	}
	if got := shell(t, grown.Path(), "blockdev --getsize64 $DISK"); got != "3145728\n" {
		t.Errorf("the disk has %s", got)
	}
	if err := grown.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestDiskThatNobodyServesIsRemoved removes what a server left: not while somebody
// uses it, unless forced, and no disk that is served or another's.
func TestDiskThatNobodyServesIsRemoved(t *testing.T) {
	theirs, _ := serve(t, ublk.Config{Owner: another})
	foreign := add(t, theirs, newMemory(1<<20))
	old, leave := serve(t, ublk.Config{})
	d, err := old.Add(t.Context(), -1, 0, newVolume(t, 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	shell(t, d.Path(), "mkfs.ext4 -q $DISK && mount $DISK /mnt")
	leave()
	s, _ := serve(t, ublk.Config{})
	served := add(t, s, newMemory(1<<20))
	for _, x := range []struct {
		number int
		force  bool
		want   error
	}{
		{d.Number(), false, content.ErrConflict},
		{served.Number(), true, nil},
		{foreign.Number(), true, nil},
		{d.Number(), true, nil},
		{d.Number(), false, nil}, // again
	} {
		if err := s.Remove(t.Context(), x.number, 0, x.force); !errors.Is(err, x.want) {
			t.Errorf("remove disk %d, force %t: %v, want %v", x.number, x.force, err, x.want)
		}
	}
	shell(t, d.Path(), "test ! -e $DISK; umount /mnt")
	for _, other := range []*ublk.Disk{served, foreign} {
		if _, err := read(other.Path(), 0); err != nil {
			t.Error(err)
		}
	}
}

// TestDiskOfAnotherProcess is left to it by one that takes itself for the same node.
func TestDiskOfAnotherProcess(t *testing.T) {
	p := startDaemon(t, filepath.Join(t.TempDir(), "volume"))
	s, _ := serve(t, ublk.Config{})
	if swept, err := s.Sweep(t.Context(), func(int, uint32) bool { return false }); !errors.Is(err, content.ErrConflict) || len(swept) != 0 {
		t.Errorf("swept %v, %v", swept, err)
	}
	if err := s.Remove(t.Context(), 0, 0, true); !errors.Is(err, content.ErrConflict) {
		t.Errorf("removed by force: %v", err)
	}
	if _, err := s.Add(t.Context(), 0, 0, newMemory(1<<20)); !errors.Is(err, content.ErrConflict) {
		t.Errorf("taken for a smaller one: %v", err)
	}
	if _, err := read("/dev/ublkb0", 0); err != nil {
		t.Error(err)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}

// TestStartsWithoutFiles starts disks again and again when the process has no file
// left, after each number of them: no more than one is left over, and that goes.
func TestStartsWithoutFiles(t *testing.T) {
	s, _ := serve(t, ublk.Config{Threads: 1})
	if err := add(t, s, newMemory(1<<20)).Stop(t.Context(), false); err != nil { // its thread has begun
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	m := newMemory(1 << 20)
	for spare := range 6 {
		set := limit
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // the lowest free one
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		set.Cur = uint64(fd + spare)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &set); err != nil {
			t.Fatal(err)
		}
		var made []*ublk.Disk
		for range 5 {
			if d, err := s.Add(t.Context(), -1, 0, m); err == nil {
				made = append(made, d)
			}
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		devices, err := filepath.Glob("/dev/ublkc*")
		if err != nil || len(devices) > len(made)+1 {
			t.Errorf("with %d files to spare: %d disks, and %q are there, %v", spare, len(made), devices, err)
		}
		last, err := s.Add(t.Context(), -1, 0, m)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range append(made, last) {
			if err := d.Stop(t.Context(), true); err != nil {
				t.Error(err)
			}
		}
	}
	if out := shell(t, "", "ls /dev/ublk[bc]* 2>/dev/null || true"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// recorder is a device that writes down what it is told.
type recorder struct {
	*memory
	mu    sync.Mutex
	calls []string
}

func (r *recorder) record(call string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
}

// take returns the calls since the last time.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func (r *recorder) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	r.record("prompt write")
	p := make([]byte, n)
	if _, err := data.ReadAt(p, 0); err != nil {
		return false
	}
	return r.memory.WriteAt(context.Background(), p, off, false) == nil
}

func (r *recorder) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	r.record(fmt.Sprintf("write fua=%t", fua))
	return r.memory.WriteAt(ctx, p, off, fua)
}

func (r *recorder) Flush(context.Context) error {
	r.record("flush")
	return nil
}

func (r *recorder) Zero(_ context.Context, _, _ int64, keep, _ bool) error {
	r.record(fmt.Sprintf("zero keep=%t", keep))
	return nil
}

// TestDeviceIsToldWhatIsAsked has each kind of request come to the device as what it
// is: a write that is to be durable never as another.
func TestDeviceIsToldWhatIsAsked(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	r := &recorder{memory: newMemory(16 << 20)}
	d := add(t, s, r)
	r.take()
	for _, x := range []struct {
		script string
		want   []string
	}{
		{"dd if=/dev/zero of=$DISK bs=4096 count=1 oflag=direct status=none", []string{"prompt write"}},
		// What follows a durable write is of the call that asked for it.
		{"dd if=/dev/zero of=$DISK bs=4096 count=1 oflag=direct,dsync status=none", []string{"write fua=true", "flush"}},
		{"dd if=/dev/zero of=$DISK bs=4096 count=1 oflag=direct conv=fsync status=none", []string{"prompt write", "flush"}},
		{"blkdiscard -l 1M $DISK", []string{"zero keep=false"}},
		{"blkdiscard -z -l 1M $DISK", []string{"zero keep=true"}},
		{"fallocate -p -l 1M $DISK", []string{"zero keep=false", "flush"}},
	} {
		shell(t, d.Path(), x.script)
		if got := r.take(); !slices.Equal(got, x.want) {
			t.Errorf("%s: the device was told %q, want %q", x.script, got, x.want)
		}
	}
}

// TestRecoveryBrokenOff takes up a disk whose last server was killed in the one
// moment of its own recovery that leaves no way on: it is made anew.
func TestRecoveryBrokenOff(t *testing.T) {
	old, leave := serve(t, ublk.Config{})
	d, err := old.Add(t.Context(), -1, 0, newMemory(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	leave()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), breakVariable+"="+fmt.Sprint(d.Number()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, _ := serve(t, ublk.Config{})
	fresh, err := s.Add(t.Context(), d.Number(), 0, newMemory(1<<20))
	if err != nil || fresh.Number() != d.Number() {
		t.Fatal(err)
	}
	if _, err := read(fresh.Path(), 0); err != nil {
		t.Error(err)
	}
	if err := fresh.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestUserWithTheCapability serves as a user who is not root, whose devices udev
// hands over a moment after the kernel has made them.
func TestUserWithTheCapability(t *testing.T) {
	const user, diskGroup = 1000, 6
	dir := t.TempDir()
	for path := dir; path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, "", fmt.Sprintf("chown root:%d /dev/ublk-control; chmod 660 /dev/ublk-control", user))
	handed := make(chan string, 1)
	go func() {
		out, err := run(t.Context(), "", fmt.Sprintf(`
			until [ -e /dev/ublkc0 ]; do sleep 0.01; done
			sleep 0.2
			chown root:%d /dev/ublkc0
			chmod 660 /dev/ublkc0
			until [ -e /dev/ublkb0 ]; do sleep 0.01; done
			chown root:%d /dev/ublkb0
			chmod 660 /dev/ublkb0`, user, diskGroup))
		handed <- fmt.Sprint(out, err)
	}()
	p := startDaemonAs(t, filepath.Join(dir, "volume"), &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: user, Gid: user, Groups: []uint32{diskGroup}},
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
	})
	if out := <-handed; out != "<nil>" {
		t.Error(out)
	}
	if _, err := read("/dev/ublkb0", 0); err != nil {
		t.Error(err)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/dev/ublkb0"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the disk is there still: %v", err)
	}
}
