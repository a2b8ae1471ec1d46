package ublk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/vm"
)

// Variables that make of the test binary another program.
const (
	daemonVariable = "GRANGE_UBLK_DAEMON" // serves a volume in that folder
	breakVariable  = "GRANGE_UBLK_BREAK"  // breaks the recovery of that disk off
)

const (
	owner   = 0x6772616e
	another = owner + 1
)

// TestMain runs the tests in a guest.
func TestMain(m *testing.M) {
	if dir := os.Getenv(daemonVariable); dir != "" {
		exit(serveFolder(dir))
	}
	if number := os.Getenv(breakVariable); number != "" {
		exit(breakRecovery(number))
	}
	os.Exit(vm.Main(m, vm.Config{MemoryMiB: 2048}))
}

// memory is a device in memory that can be told to misbehave by range.
type memory struct {
	geometry blockdev.Geometry

	mu   sync.RWMutex
	data []byte

	waiting chan int64 // gets the offset of each read that is held up
	held    func(off int64) <-chan struct{}
	fails   func(off int64) error
}

func newMemory(size int64) *memory {
	return &memory{
		geometry: blockdev.Geometry{Size: size, BlockSize: 512, PreferredSize: 256 << 10}, data: make([]byte, size),
		waiting: make(chan int64, 4096), held: func(int64) <-chan struct{} { return nil }, fails: func(int64) error { return nil },
	}
}

func (m *memory) Geometry() blockdev.Geometry { return m.geometry }

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if held := m.held(off); held != nil {
		m.waiting <- off
		select {
		case <-held:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := m.fails(off); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:])
	return nil
}

func (m *memory) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	if err := m.fails(off); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	return nil
}

func (m *memory) Flush(context.Context) error { return nil }

func (m *memory) TryReadAt([]byte, int64) bool { return false }

func (m *memory) TryReadTo(io.WriterAt, int, int64) bool { return false }

func (m *memory) TryWriteFrom(io.ReaderAt, int, int64) bool { return false }

func (m *memory) Zero(ctx context.Context, off, n int64, _, fua bool) error {
	return m.WriteAt(ctx, make([]byte, n), off, fua)
}

func (m *memory) Extents(_ context.Context, dst []blockdev.Extent, _, n int64, _ int) ([]blockdev.Extent, error) {
	return append(dst, blockdev.Extent{Length: n}), nil
}

// serve runs a server until the end of the test, or until stop is called.
func serve(t *testing.T, c ublk.Config) (s *ublk.Server, stop func()) {
	t.Helper()
	if c.Owner == 0 {
		c.Owner = owner
	}
	c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := ublk.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// add makes a disk that the end of the test removes, by force.
func add(t *testing.T, s *ublk.Server, device blockdev.Device) *ublk.Disk {
	t.Helper()
	d, err := s.Add(t.Context(), -1, 0, device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.Background(), true); err != nil && !errors.Is(err, content.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

// newVolume makes a volume in memory, as nodes serve them.
func newVolume(t *testing.T, size int64) *volume.Volume {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volume")
	if err := volume.Create(dir, [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(volume.Config{Dir: dir, ID: [16]byte{1}, Epoch: 1, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// shell runs a script with DISK set to a path, and returns what it printed.
func shell(t *testing.T, disk, script string) string {
	t.Helper()
	out, err := run(t.Context(), disk, script)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func run(ctx context.Context, disk, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), "DISK="+disk)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// kernelLog returns what the kernel says from now on.
func kernelLog(t *testing.T) func() string {
	t.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	return func() string {
		var said bytes.Buffer
		message := make([]byte, 8<<10)
		for {
			n, err := unix.Read(fd, message)
			if err != nil {
				return said.String()
			}
			said.Write(message[:n])
		}
	}
}

// read reads one block of a disk past the page cache.
func read(path string, off int64) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(page)
	n, err := unix.Pread(fd, page, off)
	if err != nil {
		return nil, fmt.Errorf("read %s at %d: %w", path, off, err)
	}
	return bytes.Clone(page[:n]), nil
}
