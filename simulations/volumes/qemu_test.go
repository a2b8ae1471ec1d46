package volumes

import (
	"bytes"
	"encoding/binary"
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

	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// reconnectSeconds is how long qemu holds requests back while its server is away: longer
// than any outage here.
const reconnectSeconds = 600

// alone starts a node by itself, on a directory.
func alone(t *testing.T) *lab.Node {
	t.Helper()
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

// shadowed is a disk beside what it should hold, of which each change must go through, and
// each read agree.
type shadowed struct {
	*client
	want, page []byte
	rng        *rand.Rand
}

func openShadowed(t *testing.T, uri string, size int) *shadowed {
	t.Helper()
	c, err := dial(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &shadowed{c, make([]byte, size), make([]byte, size), rand.New(rand.NewPCG(seed, 0))}
}

// span is any range of whole sectors, mostly a short one.
func (s *shadowed) span() (off int64, n int) {
	const sector = 512
	sectors := len(s.want) / sector
	at := s.rng.IntN(sectors)
	return int64(at) * sector, min(sectors-at, 1+s.rng.IntN(1<<s.rng.IntN(9))) * sector
}

// step makes one change, or reads: what fsx does with a file, on a disk, which has no end
// that moves.
func (s *shadowed) step(number uint64) error {
	const nbdWriteZeroes = 6
	off, n := s.span()
	var err error
	switch kind := s.rng.IntN(16); {
	case kind < 8:
		for i := 0; i < n; i += 8 {
			binary.LittleEndian.PutUint64(s.page[i:], number<<20|uint64(i))
		}
		err = s.write(s.page[:n], off)
		copy(s.want[off:], s.page[:n])
	case kind == 8:
		err = s.ask(nbdWriteZeroes, nil, off, n)
		clear(s.want[off:][:n])
	case kind == 9:
		err = s.flush()
	default:
		return s.check(off, n)
	}
	if err != nil {
		return fmt.Errorf("a change of %d bytes at %d: %w", n, off, err)
	}
	return nil
}

func (s *shadowed) check(off int64, n int) error {
	if err := s.read(s.page[:n], off); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	for i, b := range s.want[off:][:n] {
		if s.page[i] != b {
			return fmt.Errorf("byte %d is %#x, and %#x was written last: a change was lost or reverted", off+int64(i), s.page[i], b)
		}
	}
	return nil
}

// work goes on until stop is closed, and tells of its steps.
func (s *shadowed) work(stop <-chan struct{}, steps chan<- uint64) error {
	for number := uint64(1); ; number++ {
		if err := s.step(number); err != nil {
			return err
		}
		select {
		case <-stop:
			return s.check(0, len(s.want))
		case steps <- number:
		default:
		}
	}
}

// TestQEMUGoesOn kills the node under a client of qemu's that changes its disk without
// pause, and starts it again at once, and after 5, 30 and 120 s: no request fails, and
// nothing that was acknowledged is lost or comes back.
func TestQEMUGoesOn(t *testing.T) {
	n := alone(t)
	s := openShadowed(t, throughQEMU(t, n, "8MiB"), 8<<20)
	stop, steps, worked := make(chan struct{}), make(chan uint64), make(chan error, 1)
	go func() { worked <- s.work(stop, steps) }()
	progress := func(count int) {
		t.Helper()
		for range count {
			select {
			case <-steps:
			case err := <-worked:
				t.Fatalf("the work has ended: %v", err)
			case <-t.Context().Done():
				t.Fatal(t.Context().Err())
			}
		}
	}
	outages := soak.Of([]time.Duration{5 * time.Second}, []time.Duration{5 * time.Second, 30 * time.Second, 120 * time.Second})
	for range soak.Rounds(20) - 1 {
		outages = append(outages, 0)
	}
	for _, outage := range outages {
		progress(100)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		<-time.After(outage)
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	progress(100)
	close(stop)
	if err := <-worked; err != nil {
		t.Error(err)
	}
}

// TestFioVerifiesOverKills has fio write and check what it wrote, while the node is killed.
func TestFioVerifiesOverKills(t *testing.T) {
	n := alone(t)
	fio := exec.CommandContext(t.Context(), "fio", "--name=v", "--uri="+throughQEMU(t, n, "64MiB"), "--rw=randwrite", "--bsrange=4k-64k", "--size=64m",
		"--verify=crc32c", "--verify_fatal=1", "--ioengine=nbd", "--iodepth=16", "--fsync=32", "--loops=1000")
	var said bytes.Buffer
	fio.Dir, fio.Stdout, fio.Stderr = t.TempDir(), &said, &said
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	for range soak.Rounds(20) {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Second) // of work
	}
	if err := fio.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := fio.Wait(); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 128) || strings.Contains(said.String(), "verify:") || strings.Contains(said.String(), "error") {
		t.Errorf("fio: %v: %s", err, said.String())
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
