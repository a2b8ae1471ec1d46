package ublk_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/simulations/soak"
)

// exit ends a process that does another's part.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveFolder serves a volume that it makes in dir, prints READY and its path, and
// ends when it is killed or its input ends; a line of input has it remove the disk
// first.
func serveFolder(dir string) error {
	if err := volume.Create(dir, [16]byte{2}); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	v, err := volume.Open(volume.Config{Dir: dir, ID: [16]byte{2}, Size: 192 << 20, Epoch: 1})
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
	d, err := s.Add(ctx, 0, 0, v)
	if err != nil {
		cancel()
		return errors.Join(err, <-ended)
	}
	fmt.Println("READY", d.Path())
	if line, _ := bufio.NewReader(os.Stdin).ReadString('\n'); line != "" {
		err = d.Stop(ctx, false)
	}
	cancel()
	return errors.Join(err, <-ended, v.Close())
}

// breakRecovery begins a recovery, and ends when the kernel thinks of this process
// as the server and it has asked for nothing yet.
func breakRecovery(disk string) error {
	number, err := strconv.Atoi(disk)
	if err != nil {
		return err
	}
	return ublk.BreakRecovery(context.Background(), number)
}

// process is a server of its own.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func startDaemon(t *testing.T, dir string) *process {
	t.Helper()
	return startDaemonAs(t, dir, nil)
}

func startDaemonAs(t *testing.T, dir string, who *syscall.SysProcAttr) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = who
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
	return &process{cmd, in}
}

// leave has it end by its own will, and stop has it remove the disk before.
func (p *process) leave() error { return errors.Join(p.in.Close(), p.cmd.Wait()) }

func (p *process) stop() error {
	_, err := io.WriteString(p.in, "stop\n")
	return errors.Join(err, p.leave())
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
	if swept, err := s.Sweep(t.Context(), func(int, uint32) bool { return false }); err != nil || len(swept) != 1 {
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

func TestKilledServerIsFollowed(t *testing.T) { restarts(t, soak.Rounds(20), (*process).kill) }

func TestLeavingServerIsFollowed(t *testing.T) {
	restarts(t, soak.Rounds(20), func(p *process) error { return p.leave() })
}

// TestRecoveryThatWasBegun takes up a disk whose recovery somebody has begun and not
// ended.
func TestRecoveryThatWasBegun(t *testing.T) {
	old, leave := serve(t, ublk.Config{})
	d, err := old.Add(t.Context(), -1, 0, newMemory(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	leave()
	// What a server does that is killed after the first step of a recovery.
	if err := ublk.BeginRecovery(t.Context(), d.Number()); err != nil {
		t.Fatal(err)
	}
	s, _ := serve(t, ublk.Config{})
	again, err := s.Add(t.Context(), d.Number(), 0, newMemory(1<<20))
	if err != nil || again.Number() != d.Number() {
		t.Fatalf("after half a recovery: %v", err)
	}
	if _, err := read(again.Path(), 0); err != nil {
		t.Error(err)
	}
	if err := again.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}
