package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pageSize is the unit in which memory knows holes.
const pageSize = 4 << 10

// memory is a device with every ability, and an oracle of the contract: it fails
// on calls that the door must not make.
type memory struct {
	geometry blockdev.Geometry

	mu   sync.RWMutex
	data []byte
	hole []bool // by page
}

func newMemory(size int64) *memory {
	m := &memory{
		geometry: blockdev.Geometry{Size: size, BlockSize: 512, PreferredSize: pageSize},
		data:     make([]byte, size),
		hole:     make([]bool, (size+pageSize-1)/pageSize),
	}
	for i := range m.hole {
		m.hole[i] = true
	}
	return m
}

// fill makes the whole device data that differs everywhere.
func (m *memory) fill() *memory {
	x := uint64(1)
	for i := range m.data {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		m.data[i] = byte(x)
	}
	clear(m.hole)
	return m
}

func (m *memory) Geometry() blockdev.Geometry { return m.geometry }

// check panics where the door broke its side of the contract.
func (m *memory) check(off, n int64) {
	unit := int64(m.geometry.BlockSize)
	if off < 0 || n <= 0 || off%unit != 0 || n%unit != 0 || off > m.geometry.Size || n > m.geometry.Size-off {
		panic(fmt.Sprintf("a call for %d bytes at %d of %d in blocks of %d", n, off, m.geometry.Size, unit))
	}
}

func (m *memory) TryReadAt(p []byte, off int64) bool {
	m.check(off, int64(len(p)))
	m.mu.RLock()
	copy(p, m.data[off:])
	m.mu.RUnlock()
	return true
}

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.TryReadAt(p, off)
	return nil
}

func (m *memory) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	m.check(off, int64(n))
	if m.geometry.ReadOnly {
		panic("a write to a read-only device")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark(off, int64(n), false)
	got, _ := data.ReadAt(m.data[off:][:n], 0)
	return got == n
}

// TryReadTo is for the other door.
func (m *memory) TryReadTo(io.WriterAt, int, int64) bool { return false }

func (m *memory) write(p []byte, off int64) bool {
	return m.TryWriteFrom(bytes.NewReader(p), len(p), off)
}

// mark notes under mu that a range became hole or data; a hole only where whole
// pages are.
func (m *memory) mark(off, n int64, hole bool) {
	from, to := off/pageSize, (off+n+pageSize-1)/pageSize
	if hole {
		from, to = (off+pageSize-1)/pageSize, (off+n)/pageSize
		if off+n == m.geometry.Size {
			to = int64(len(m.hole))
		}
	}
	for i := from; i < to; i++ {
		m.hole[i] = hole
	}
}

func (m *memory) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	m.check(off, int64(len(p)))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark(off, int64(len(p)), false)
	copy(m.data[off:], p)
	return nil
}

func (m *memory) Flush(context.Context) error { return nil }

func (m *memory) Zero(_ context.Context, off, n int64, keep, _ bool) error {
	m.check(off, n)
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	m.mark(off, n, !keep)
	return nil
}

func (m *memory) Extents(_ context.Context, dst []blockdev.Extent, off, n int64, limit int) ([]blockdev.Extent, error) {
	m.check(off, n)
	m.mu.RLock()
	defer m.mu.RUnlock()
	for end := off + n; off < end; {
		page := off / pageSize
		length := min((page+1)*pageSize, end) - off
		state := blockdev.Data
		if m.hole[page] {
			state = blockdev.Hole
		}
		if k := len(dst); k > 0 && dst[k-1].State == state {
			dst[k-1].Length += length
		} else if k == limit {
			break
		} else {
			dst = append(dst, blockdev.Extent{Length: length, State: state})
		}
		off += length
	}
	return dst, nil
}

// isHole reports whether the page at off is one.
func (m *memory) isHole(off int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.hole[off/pageSize]
}

// equal reports whether the device holds those bytes.
func (m *memory) equal(data []byte) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Equal(m.data, data)
}

// shelf is a set of exports that counts what is open.
type shelf struct {
	mu      sync.Mutex
	devices map[string]blockdev.Device
	open    map[string]int
}

func newShelf(devices map[string]blockdev.Device) *shelf {
	return &shelf{devices: devices, open: map[string]int{}}
}

func (s *shelf) Lookup(_ context.Context, name string) (blockdev.Device, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.devices[name]
	if !ok {
		return nil, nil, fmt.Errorf("device %q: %w", name, content.ErrNotFound)
	}
	s.open[name]++
	return d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.open[name]--
	}, nil
}

func (s *shelf) List(context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.devices)), nil
}

// remove takes a name away, as a detach does before it drains.
func (s *shelf) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, name)
}

func (s *shelf) opened(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[name]
}
