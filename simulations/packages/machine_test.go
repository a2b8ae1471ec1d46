package packages

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/guest"
)

// bootScript boots a machine, by go:embed.
//
//go:embed boot.sh
var bootScript string

const (
	// bootTimeout is for systemd in namespaces, which takes seconds; commandTimeout for what is run there.
	bootTimeout, commandTimeout = time.Minute, 2 * time.Minute
)

// machine is a Debian whose systemd runs in namespaces of this host.
type machine struct{ pid string }

// bootMachine boots one that sees a folder as /packages.
func bootMachine(t *testing.T, shared string) *machine {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := debian.Build(t.Context(), filepath.Join(cache, "grange", "debian"), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	holder := exec.CommandContext(context.Background(), "bash", "-c", bootScript, "boot.sh", image.Root, t.TempDir(), shared)
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := os.Create(filepath.Join(t.TempDir(), "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	holder.Stdout, holder.Stderr = said, said
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		holder.Process.Kill()
		holder.Wait() // it was killed, which is no news
		leave(t, fmt.Sprintf("grange-packages-%d", holder.Process.Pid))
	})
	m := &machine{}
	m.until(t, "systemd runs", bootTimeout, func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", holder.Process.Pid, holder.Process.Pid))
		if m.pid = strings.TrimSpace(string(children)); m.pid == "" {
			text, _ := os.ReadFile(said.Name())
			return fmt.Errorf("%v %s", err, text)
		}
		_, err = m.try(t, "systemctl is-system-running | grep -E 'running|degraded'")
		return err
	})
	return m
}

// leave removes the control group of a machine, and those that its systemd has made, once
// all in them have ended.
func leave(t *testing.T, group string) {
	t.Helper()
	late := time.After(bootTimeout)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var found []string
		for _, parent := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
			if _, failed := os.Stat(filepath.Join(parent, group)); failed == nil {
				found = append(found, filepath.Join(parent, group))
			}
		}
		if len(found) == 0 {
			return
		}
		var folders []string
		err := filepath.WalkDir(found[0], func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				folders = append(folders, path)
			}
			return nil // it may have gone meanwhile
		})
		for _, folder := range slices.Backward(folders) {
			err = errors.Join(err, os.Remove(folder))
		}
		select {
		case <-tick.C:
		case <-late:
			t.Errorf("%s is left: %v", found[0], err)
			return
		}
	}
}

// until asks for something again and again that comes by itself.
func (m *machine) until(t *testing.T, what string, within time.Duration, holds func() error) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	late := time.After(within)
	for err := holds(); err != nil; err = holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
	}
}

// try runs a script there, by root.
func (m *machine) try(t *testing.T, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-t", m.pid, "--all", "--wdns=/root", "env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "bash", "-euo", "pipefail", "-s")
	cmd.Stdin = strings.NewReader(script)
	cmd.WaitDelay = time.Second // what it started may hold its output
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// run is try of what has to succeed.
func (m *machine) run(t *testing.T, script string) string {
	t.Helper()
	out, err := m.try(t, script)
	if err != nil {
		log, _ := m.try(t, "journalctl --no-pager -q -n 40 -u 'grange*'")
		t.Fatalf("%v\n%s\nit said:\n%s\nthe journal:\n%s", err, script, out, log)
	}
	return out
}

// wants runs what has to print something.
func (m *machine) wants(t *testing.T, script, want string) {
	t.Helper()
	if got := m.run(t, script); got != want {
		t.Errorf("%s: %q, want %q", script, got, want)
	}
}

// path is where this host sees a file of the machine.
func (m *machine) path(name string) string { return filepath.Join("/proc", m.pid, "root", name) }

// disk is a guest's: qemu's client of an export, which looks for its server again when it
// has gone, and tells of each error.
type disk struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	says   *bufio.Scanner
	number int
}

// diskBlocks of diskBlock bytes are written in turn.
const diskBlocks, diskBlock = 64, 1 << 16

func (m *machine) openDisk(t *testing.T, volume string) *disk {
	t.Helper()
	d := &disk{cmd: exec.Command("qemu-io", "--image-opts", fmt.Sprintf("driver=nbd,server.type=unix,server.path=%s,export=%s,reconnect-delay=60,open-timeout=60", m.path("/var/lib/grange/nbd.sock"), volume))}
	in, err := d.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.in, d.cmd.Stderr, d.says = in, d.cmd.Stdout, bufio.NewScanner(out)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = d.cmd.Process.Kill(), d.cmd.Wait() })
	return d
}

// ask has it do one thing, and awaits that it says so.
func (d *disk) ask(command, done string) error {
	if _, err := io.WriteString(d.in, command+"\n"); err != nil {
		return err
	}
	for d.says.Scan() {
		switch line := d.says.Text(); {
		case strings.Contains(line, done):
			return nil
		case strings.Contains(line, "failed"), strings.Contains(line, "rror"):
			return fmt.Errorf("%s: %s", command, line)
		}
	}
	return fmt.Errorf("%s: the client has ended: %w", command, io.ErrUnexpectedEOF)
}

// load writes a block, flushed, and reads back the one that was written longest ago.
func (d *disk) load() error {
	d.number++
	at, pattern := d.number%diskBlocks*diskBlock, d.number/diskBlocks%255+1
	if err := d.ask(fmt.Sprintf("write -f -P %d %d %d", pattern, at, diskBlock), fmt.Sprintf("wrote %d/%d", diskBlock, diskBlock)); err != nil {
		return err
	}
	oldest := d.number + 1 - diskBlocks
	if oldest < 1 {
		return nil
	}
	return d.ask(fmt.Sprintf("read -P %d %d %d", oldest/diskBlocks%255+1, oldest%diskBlocks*diskBlock, diskBlock), fmt.Sprintf("read %d/%d", diskBlock, diskBlock))
}

// under runs something while a volume is written and read, and fails at the first error of its disk.
func (m *machine) under(t *testing.T, volume string, act func(w *guest.Work)) {
	t.Helper()
	d := m.openDisk(t, volume)
	w := guest.Begin("the disk "+volume, d.load)
	act(w)
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
	t.Logf("%d writes of %s, each flushed, and reads of what was written, without an error", d.number, volume)
}

// goesOn waits until the disk has done some more.
func goesOn(t *testing.T, w *guest.Work) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	if err := w.Progress(ctx, 20); err != nil {
		t.Fatal(err)
	}
}
