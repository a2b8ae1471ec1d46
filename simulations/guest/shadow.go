package guest

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// sector is the least that a disk reads or writes, in bytes: what it writes at once is
// there or not.
const sector = 512

// Disk is what a guest has for one. All offsets and lengths are of whole sectors.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Zero(off, n int64) error
	// Trim leaves zeros, or what was there, in each sector.
	Trim(off, n int64) error
	Sync() error
}

// Shadow is a disk beside what it should hold, of which each change must go through, and
// each read agree: what fsx does with a file, on a disk, which has no end that moves. One
// goroutine uses it.
type Shadow struct {
	disk       Disk
	want, page []byte
	rng        *rand.Rand
	number     uint64 // of the last write
}

// NewShadow begins with a disk of zeros.
func NewShadow(d Disk, size int, seed uint64) *Shadow {
	return &Shadow{disk: d, want: make([]byte, size), page: make([]byte, size), rng: rand.New(rand.NewPCG(seed, 0))}
}

// span is any range of whole sectors, mostly a short one.
func (s *Shadow) span() (off int64, n int) {
	sectors := len(s.want) / sector
	at := s.rng.IntN(sectors)
	return int64(at) * sector, min(sectors-at, 1+s.rng.IntN(1<<s.rng.IntN(9))) * sector
}

// Step makes one change, or reads.
func (s *Shadow) Step() error {
	off, n := s.span()
	var err error
	switch kind := s.rng.IntN(16); {
	case kind < 7:
		s.number++
		for i := 0; i < n; i += 8 {
			binary.LittleEndian.PutUint64(s.page[i:], s.number<<20|uint64(i))
		}
		_, err = s.disk.WriteAt(s.page[:n], off)
		copy(s.want[off:], s.page[:n])
	case kind == 7:
		err = s.disk.Trim(off, int64(n))
		if err == nil {
			return s.trimmed(off, n)
		}
	case kind == 8:
		err = s.disk.Zero(off, int64(n))
		clear(s.want[off:][:n])
	case kind == 9:
		err = s.disk.Sync()
	default:
		return s.check(off, n)
	}
	if err != nil {
		return fmt.Errorf("change %d, of %d bytes at %d: %w", s.number, n, off, err)
	}
	return nil
}

// trimmed takes for right what a disk has made of a trim, if it is.
func (s *Shadow) trimmed(off int64, n int) error {
	if _, err := s.disk.ReadAt(s.page[:n], off); err != nil {
		return fmt.Errorf("read %d trimmed bytes at %d: %w", n, off, err)
	}
	for at := 0; at < n; at += sector {
		if p := s.page[at:][:sector]; string(p) == string(make([]byte, sector)) {
			copy(s.want[off+int64(at):], p)
		}
	}
	return s.agree(off, n)
}

func (s *Shadow) check(off int64, n int) error {
	if _, err := s.disk.ReadAt(s.page[:n], off); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return s.agree(off, n)
}

func (s *Shadow) agree(off int64, n int) error {
	for i, b := range s.want[off:][:n] {
		if s.page[i] != b {
			return fmt.Errorf("byte %d is %#x, and %#x was written last: a change was lost or reverted", off+int64(i), s.page[i], b)
		}
	}
	return nil
}

// Check reads all of the disk.
func (s *Shadow) Check() error { return s.check(0, len(s.want)) }

// Want is what the disk should hold; it changes with each step.
func (s *Shadow) Want() []byte { return s.want }
