package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/guest"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// reconnectSeconds is how long qemu holds requests back while its server is away: longer
// than any outage here.
const reconnectSeconds = 600

// alone starts a node by itself, on a directory, for a test that runs beside others.
func alone(t *testing.T) *lab.Node {
	t.Helper()
	t.Parallel()
	l, err := lab.New(t.Context(), command(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n, err := l.Start(t.Context(), "a", "")
	t.Cleanup(func() {
		if t.Failed() && n != nil {
			t.Logf("── %s\n%s", n.Name, n.Tail(15))
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// openByQEMU has qemu open a new volume of the node as it opens a guest's disk, and show it
// by an export of its own, until ready.
func openByQEMU(t *testing.T, n *lab.Node, size string, export []string, ready func() bool) {
	t.Helper()
	device, err := n.Run(t.Context(), "volume", "create", "disk", "--transport", "nbd", "--size", size)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(strings.TrimSpace(device))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-storage-daemon", append([]string{"--blockdev",
		fmt.Sprintf("driver=nbd,node-name=disk,server.type=unix,server.path=%s,export=disk,reconnect-delay=%d,discard=unmap", u.Query().Get("socket"), reconnectSeconds)}, export...)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := <-ended; err != nil {
			t.Errorf("qemu: %v: %s", err, said.String())
		}
	})
	for tick := time.Tick(10 * time.Millisecond); !ready(); {
		select {
		case <-tick:
		case err := <-ended:
			ended <- nil
			t.Fatalf("qemu: %v: %s", err, said.String())
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// throughQEMU returns the URI at which qemu serves a new volume of the node on. (As a file
// it would be closed by each new process of the test, which waits for the volume.)
func throughQEMU(t *testing.T, n *lab.Node, size string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "qemu.sock")
	openByQEMU(t, n, size, []string{"--nbd-server", "addr.type=unix,addr.path=" + socket, "--export", "type=nbd,id=out,node-name=disk,name=disk,writable=on"}, func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return "nbd+unix:///disk?socket=" + socket
}

// nbdDisk is what a client has connected to, as a guest's disk.
type nbdDisk struct{ *client }

func (d nbdDisk) ReadAt(p []byte, off int64) (int, error)  { return len(p), d.read(p, off) }
func (d nbdDisk) WriteAt(p []byte, off int64) (int, error) { return len(p), d.write(p, off) }
func (d nbdDisk) Trim(off, n int64) error                  { return d.ask(nbdTrim, nil, off, int(n)) }
func (d nbdDisk) Zero(off, n int64) error                  { return d.ask(nbdWriteZeroes, nil, off, int(n)) }
func (d nbdDisk) Sync() error                              { return d.flush() }

// openShadow opens a disk of zeros beside what it should hold.
func openShadow(t *testing.T, uri string) *guest.Shadow {
	t.Helper()
	c, err := dial(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return guest.NewShadow(nbdDisk{c}, int(c.size), seed)
}

// begun begins work that the end of the test stops, if nothing else has.
func begun(t *testing.T, name string, step func() error) *guest.Work {
	w := guest.Begin(name, step)
	t.Cleanup(func() { _ = w.Stop() }) // the test has looked at it, or failed before
	return w
}

// goesOn waits until work has done some steps more.
func goesOn(t *testing.T, w *guest.Work, steps int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.Progress(ctx, steps); err != nil {
		t.Fatal(err)
	}
}

// TestQEMUGoesOn kills the node under a client of qemu's that changes its disk without
// pause, and starts it again at once, and after 5, 30 and 120 s: no request fails, and
// nothing that was acknowledged is lost or comes back.
func TestQEMUGoesOn(t *testing.T) {
	n := alone(t)
	s := openShadow(t, throughQEMU(t, n, "8MiB"))
	w := begun(t, "the work", s.Step)
	outages := soak.Of([]time.Duration{5 * time.Second}, []time.Duration{5 * time.Second, 30 * time.Second, 120 * time.Second})
	for range soak.Rounds(20) - 1 {
		outages = append(outages, 0)
	}
	for _, outage := range outages {
		goesOn(t, w, 100)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		<-time.After(outage)
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	goesOn(t, w, 100)
	if err := errors.Join(w.Stop(), s.Check()); err != nil {
		t.Error(err)
	}
}

// verifying is fio that writes to a disk and checks what it wrote.
type verifying struct {
	cmd  *exec.Cmd
	said bytes.Buffer
}

func verifies(t *testing.T, uri, size string, options ...string) *verifying {
	t.Helper()
	v := &verifying{cmd: exec.CommandContext(t.Context(), "fio", append(options, "--name=v", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange=4k-64k", "--size="+size,
		"--verify=crc32c", "--verify_fatal=1", "--iodepth=16", "--fsync=32", "--loops=100000")...)}
	v.cmd.Dir, v.cmd.Stdout, v.cmd.Stderr = t.TempDir(), &v.said, &v.said
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return v
}

// end says what went wrong until now, if anything did.
func (v *verifying) end() error {
	err := v.cmd.Process.Signal(os.Interrupt)
	var exit *exec.ExitError
	if end := v.cmd.Wait(); end != nil && !(errors.As(end, &exit) && exit.ExitCode() == 128) {
		err = errors.Join(err, end)
	}
	if out := v.said.String(); err != nil || strings.Contains(out, "verify:") || strings.Contains(out, "error") {
		return fmt.Errorf("fio: %v: %s", err, out)
	}
	return nil
}

// TestFioVerifiesOverKills has fio write and check what it wrote, while the node is killed.
func TestFioVerifiesOverKills(t *testing.T) {
	n := alone(t)
	fio := verifies(t, throughQEMU(t, n, "64MiB"), "64m")
	for range soak.Rounds(20) {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Second) // of work
	}
	if err := fio.end(); err != nil {
		t.Error(err)
	}
}

// TestLargeFileSystem makes one on a volume of 16 TiB.
func TestLargeFileSystem(t *testing.T) {
	n := alone(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openByQEMU(t, n, "16TiB", []string{"--export", "type=fuse,id=out,node-name=disk,writable=on,mountpoint=" + file}, func() bool {
		info, err := os.Stat(file)
		return err == nil && info.Size() > 0
	})
	began := time.Now()
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", file).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	t.Logf("mkfs.ext4 of 16 TiB took %.1f s", time.Since(began).Seconds())
	if out, err := exec.CommandContext(t.Context(), "dumpe2fs", "-h", file).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("Block count:              4294967296")) && !bytes.Contains(out, []byte("Block count:              4294967295")) {
		t.Errorf("dumpe2fs: %v: %s", err, out)
	}
}
