package ublk_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/simulations/soak"
)

// TestNewerWriteStays has a client write to a place, many at once and past the page cache,
// and kills it; the server is killed, or leaves, or stays. Then another one writes there
// and is answered: nothing of the first comes after that, at once or over a restart.
func TestNewerWriteStays(t *testing.T) {
	const path = "/dev/ublkb0"
	dir := filepath.Join(t.TempDir(), "volume")
	p := startDaemon(t, dir)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(old, bytes.Repeat([]byte{0xaa}, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	ends := []func(*process) error{(*process).kill, (*process).leave, nil}
	for round := range soak.Rounds(1000) {
		stop := writeOften(t, path, old)
		if end := ends[round%len(ends)]; end != nil {
			if err := end(p); err != nil {
				t.Error(err)
			}
			p = startDaemon(t, dir)
		}
		stop()
		newer := byte(round%100 + 1)
		write(t, path, newer)
		for _, when := range []string{"at once", "after a restart"} {
			got, err := read(path, 0)
			if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{newer}, len(got))) {
				t.Fatalf("round %d, %s: it reads %x, want %x: %v", round, when, got[:1], newer, err)
			}
			if when == "at once" && round%10 == 0 {
				if err := p.kill(); err != nil {
					t.Error(err)
				}
				p = startDaemon(t, dir)
			}
		}
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
}

// writeOften has processes write a file's bytes to the beginning of a disk again and again,
// until stop kills them, which returns when they are gone.
func writeOften(t *testing.T, path, file string) (stop func()) {
	t.Helper()
	const writers = 4
	begun := filepath.Join(t.TempDir(), "begun")
	cmd := exec.Command("bash", "-c", fmt.Sprintf(`
		for i in $(seq %d); do
			while dd if=%s of=%s bs=4096 count=1 oflag=direct conv=notrunc status=none; do echo >>%s; done &
		done
		wait`, writers, file, path, begun))
	var said bytes.Buffer // a pipe, which ends with the last of them
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines(begun) == 0 { // they are at work
		shell(t, "", "sleep 0.02")
	}
	return func() {
		t.Helper()
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // they were killed
		if said.Len() > 0 {
			t.Errorf("the writers say: %s", said.String())
		}
	}
}

// write fills the beginning of a disk with a byte, past the page cache, and flushes.
func write(t *testing.T, path string, b byte) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	for i := range page {
		page[i] = b
	}
	if n, err := unix.Pwrite(fd, page, 0); err != nil || n != len(page) {
		t.Fatalf("%d bytes: %v", n, err)
	}
	if err := unix.Fsync(fd); err != nil {
		t.Fatal(err)
	}
}
