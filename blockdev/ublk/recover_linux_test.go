package ublk_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/blockdev/volume"
)

// daemon serves a volume that it makes in dir, prints READY and its path, and ends
// when it is killed or its input ends.
func daemon(dir string) int {
	if err := serveFolder(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serveFolder(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := volume.Create(dir, volume.Meta{ID: [16]byte{2}, Size: 192 << 20, Epoch: 1}); err != nil {
			return err
		}
	}
	v, err := volume.Open(volume.Config{Dir: dir})
	if err != nil {
		return err
	}
	s, err := ublk.New(ublk.Config{Owner: owner, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	d, err := s.Add(ctx, 0, v)
	if err != nil {
		cancel()
		return errors.Join(err, <-ended)
	}
	fmt.Println("READY", d.Path())
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // to the end of the input
	cancel()
	return errors.Join(<-ended, v.Close())
}

// process is a daemon.
type process struct {
	cmd   *exec.Cmd
	leave func() error // by its own will
}

func startDaemon(t *testing.T, dir string) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), daemonVariable+"="+dir)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "READY /dev/ublkb0\n" {
		t.Fatalf("the daemon says %q, %v", line, err)
	}
	return &process{cmd, func() error { return errors.Join(in.Close(), cmd.Wait()) }}
}

// kill is SIGKILL.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // the error is that it was killed
	return err
}

// work writes, checks and removes for ever on a mounted file system, until stop
// says so; it ends with how that went.
const work = `
	mkfs.ext4 -q $DISK
	mount $DISK /mnt
	while ! [ -e /tmp/stop ]; do
		mkdir /mnt/a && cp program /mnt/a/one
		head -c 3000000 /dev/urandom >/tmp/two
		cp /tmp/two /mnt/a
		sync
		echo 1 >/proc/sys/vm/drop_caches
		cmp /tmp/two /mnt/a/two
		cmp program /mnt/a/one
		rm -r /mnt/a
		echo turn >>/tmp/turns
	done
	umount /mnt
	e2fsck -fn $DISK
	rm /tmp/stop`

// restarts has a file system at work while its server is replaced, count times.
func restarts(t *testing.T, count int, end func(*process) error) {
	said := kernelLog(t)
	dir := filepath.Join(t.TempDir(), "volume")
	p := startDaemon(t, dir)
	type result struct {
		out string
		err error
	}
	worked := make(chan result, 1)
	go func() {
		out, err := run(context.Background(), "/dev/ublkb0", work)
		worked <- result{out, err}
	}()
	for range count {
		turns := lines("/tmp/turns")
		for lines("/tmp/turns") == turns { // it is at work
			select {
			case r := <-worked:
				t.Fatalf("the work has ended: %v\n%s", r.err, r.out)
			default:
			}
			shell(t, "", "sleep 0.05")
		}
		if err := end(p); err != nil {
			t.Error(err)
		}
		p = startDaemon(t, dir)
	}
	if err := os.WriteFile("/tmp/stop", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := <-worked; r.err != nil {
		t.Errorf("%v\n%s", r.err, r.out)
	}
	if err := p.leave(); err != nil {
		t.Error(err)
	}
	s, _ := serve(t, ublk.Config{})
	if swept, err := s.Sweep(t.Context(), func(int) bool { return false }); err != nil || len(swept) != 1 {
		t.Errorf("swept %v, %v", swept, err)
	}
	if log := said(); strings.Contains(log, "error") {
		t.Errorf("the kernel says: %s", log)
	}
}

func lines(file string) int {
	b, _ := os.ReadFile(file) // absent is none
	return strings.Count(string(b), "\n")
}

func TestKilledServerIsFollowed(t *testing.T) { restarts(t, rounds(20), (*process).kill) }

func TestLeavingServerIsFollowed(t *testing.T) {
	restarts(t, rounds(20), func(p *process) error { return p.leave() })
}

// TestBrokenRecoveryIsMadeAnew takes up a disk whose recovery somebody has begun and
// not ended, and one that cannot be recovered at all.
func TestBrokenRecoveryIsMadeAnew(t *testing.T) {
	old, leave := serve(t, ublk.Config{})
	d, err := old.Add(t.Context(), -1, newMemory(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	leave()
	// What a server does that is killed after the first step of a recovery.
	if err := ublk.BeginRecovery(t.Context(), d.Number()); err != nil {
		t.Fatal(err)
	}
	s, leave := serve(t, ublk.Config{})
	again, err := s.Add(t.Context(), d.Number(), newMemory(1<<20))
	if err != nil || again.Number() != d.Number() {
		t.Fatalf("after half a recovery: %v", err)
	}
	if _, err := read(again.Path(), 0); err != nil {
		t.Error(err)
	}
	leave()
	// Another process holds the device: no recovery can end.
	held, err := os.OpenFile(fmt.Sprintf("/dev/ublkc%d", d.Number()), os.O_RDWR, 0)
	for ; errors.Is(err, unix.EBUSY); held, err = os.OpenFile(fmt.Sprintf("/dev/ublkc%d", d.Number()), os.O_RDWR, 0) {
		shell(t, "", "sleep 0.01") // the kernel is about to see that its server has left
	}
	if err != nil {
		t.Fatal(err)
	}
	s, _ = serve(t, ublk.Config{})
	broken, err := s.Add(t.Context(), d.Number(), newMemory(1<<20))
	if err == nil {
		err = broken.Stop(t.Context(), true)
	}
	t.Logf("while another holds it: %v", err)
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	fresh, err := s.Add(t.Context(), d.Number(), newMemory(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(fresh.Path(), 0); err != nil {
		t.Error(err)
	}
	if err := fresh.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}
