package extents

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"

	"github.com/grangemesh/grange/blockdev/pagecache"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
)

const (
	extentBytes = 40

	// TempPrefix begins the names of files of spilled layers. They are of one run of the process
	// and made anew from the segments, so they are neither synced nor kept.
	TempPrefix  = ".layer-"
	spillPage   = 4096
	spillRecord = 36
	// perPage is how many extents a page has, beside their number and its sum.
	perPage = (spillPage - 8) / spillRecord
)

// Spilled is a sorted list of extents in a file, in pages:
//
//	0     4  number of extents
//	4     36 each: first sector 8, offset 8, sectors 4, slot 4, before 4, entry 4, sum 4
//	4092  4  CRC32C of the bytes before
type Spilled struct {
	Usage
	File  *os.File
	Index []uint64 // where each page begins
	pages *scratch.Pool
}

// spiller writes a spilled layer.
type spiller struct {
	*Spilled
	page []byte // what of the last page there is
	n    uint32
	out  []byte // pages to be written
	off  int64
}

// spillBuffer is how much is written at a time.
const spillBuffer = 256 << 10

func newSpiller(dir string, pages *scratch.Pool) (*spiller, error) {
	f, err := os.CreateTemp(dir, TempPrefix+"*")
	if err != nil {
		return nil, err
	}
	return &spiller{Spilled: &Spilled{File: f, pages: pages}, page: make([]byte, 4, spillPage)}, nil
}

func (s *spiller) add(e Extent) error {
	if s.n == 0 {
		s.Index = append(s.Index, e.Start)
	}
	b := binary.LittleEndian.AppendUint64(s.page, e.Start)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Data))
	for _, x := range [...]uint32{e.N, e.Seg, e.Before, e.Entry, e.Crc} {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	s.page, s.n = b, s.n+1
	s.Account(e, 1)
	if s.n < perPage {
		return nil
	}
	return s.turn()
}

// turn ends a page.
func (s *spiller) turn() error {
	binary.LittleEndian.PutUint32(s.page, s.n)
	page := s.page[:spillPage]
	clear(page[len(s.page):])
	binary.LittleEndian.PutUint32(page[spillPage-4:], pageSum(page))
	s.out = append(s.out, page...)
	s.page, s.n = s.page[:4], 0
	if len(s.out) < spillBuffer {
		return nil
	}
	return s.write()
}

func (s *spiller) write() error {
	_, err := s.File.WriteAt(s.out, s.off)
	s.off += int64(len(s.out))
	s.out = s.out[:0]
	return err
}

func (s *spiller) finish() (*Spilled, error) {
	if s.n > 0 {
		if err := s.turn(); err != nil {
			return nil, err
		}
	}
	return s.Spilled, s.write()
}

// Drop closes and removes the file.
func (s *Spilled) Drop() error { return errors.Join(s.File.Close(), os.Remove(s.File.Name())) }

func (s *Spilled) rotten(page int) error {
	return fmt.Errorf("%s, page %d: %w: the list of what a volume has written can't be read; restart the node, which makes it anew", s.File.Name(), page, content.ErrCorrupt)
}

// read fills b with a page and returns how many extents it has.
func (s *Spilled) read(page int, b []byte, wait bool) (int, error) {
	if err := ReadFile(s.File, b, int64(page)*spillPage, wait); err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint32(b)
	if pageSum(b) != binary.LittleEndian.Uint32(b[spillPage-4:]) || n > perPage {
		return 0, s.rotten(page)
	}
	return int(n), nil
}

func pageSum(page []byte) uint32 {
	return crc32.Checksum(page[:spillPage-4], crc32.MakeTable(crc32.Castagnoli))
}

func record(page []byte, i int) Extent {
	r := page[4+i*spillRecord:]
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(r[at:]) }
	return Extent{Start: binary.LittleEndian.Uint64(r), Data: int64(binary.LittleEndian.Uint64(r[8:])), N: u32(16), Seg: u32(20), Before: u32(24), Entry: u32(28), Crc: u32(32)}
}

// At returns the extent that covers a sector, or the next one behind it. Without wait it is
// ErrCold where that takes a wait for the disk.
func (s *Spilled) At(sector uint64, wait bool) (Extent, bool, error) {
	b := s.pages.Get(spillPage)
	defer s.pages.Put(b)
	for page := s.page(sector); page < len(s.Index); page++ {
		n, err := s.read(page, *b, wait)
		if err != nil {
			return Extent{}, false, err
		}
		if i := sort.Search(n, func(i int) bool { return record(*b, i).End() > sector }); i < n {
			return record(*b, i), true, nil
		}
	}
	return Extent{}, false, nil
}

// page is where the extent lies that covers a sector, if one does.
func (s *Spilled) page(sector uint64) int {
	return max(sort.Search(len(s.Index), func(i int) bool { return s.Index[i] > sector })-1, 0)
}

// From returns the extents of the list from the one on that covers a sector, or comes next.
func (s *Spilled) From(sector uint64) Cursor {
	b := make([]byte, spillPage)
	page, i, n := s.page(sector), 0, 0
	return func() (Extent, bool, error) {
		for i == n {
			if page == len(s.Index) {
				return Extent{}, false, nil
			}
			var err error
			if n, err = s.read(page, b, true); err != nil {
				return Extent{}, false, err
			}
			page, i = page+1, sort.Search(n, func(i int) bool { return record(b, i).End() > sector })
		}
		i++
		return record(b, i-1), true, nil
	}
}

// Gather makes a list of extents: in memory, if it takes no more than room there, else
// in a file in dir.
func Gather(dir string, pages *scratch.Pool, extents Cursor, room int64) (mem *Map, disk *Spilled, err error) {
	mem = new(Map)
	var out *spiller
	for {
		e, ok, err := extents()
		switch {
		case err != nil || !ok:
		case out == nil && mem.Size() <= room:
			mem.add(e)
		case out == nil:
			if out, err = mem.spill(dir, pages); err == nil {
				err = out.add(e)
			}
		default:
			err = out.add(e)
		}
		if err != nil && out != nil {
			err = errors.Join(err, out.Drop())
		}
		if err != nil {
			return nil, nil, fmt.Errorf("list of what the volume has written: %w", err)
		}
		if !ok {
			break
		}
	}
	if out == nil && mem.Size() > room {
		if out, err = mem.spill(dir, pages); err != nil {
			return nil, nil, err
		}
	}
	if out == nil {
		return mem, nil, nil
	}
	if disk, err = out.finish(); err != nil {
		return nil, nil, fmt.Errorf("list of what the volume has written: %w", errors.Join(err, out.Drop()))
	}
	return nil, disk, nil
}

// spill begins a file with what the map has.
func (m *Map) spill(dir string, pages *scratch.Pool) (*spiller, error) {
	out, err := newSpiller(dir, pages)
	if err != nil {
		return nil, err
	}
	for _, page := range m.pages {
		for _, e := range page {
			if err := out.add(e); err != nil {
				return nil, errors.Join(err, out.Drop())
			}
		}
	}
	return out, nil
}

// ErrCold says that a read has to wait for the disk.
var ErrCold = errors.New("not in memory")

// ReadFile fills p; without wait only from the memory of the kernel.
func ReadFile(f *os.File, p []byte, off int64, wait bool) error {
	if !wait {
		if !pagecache.Read(f, p, off) {
			return ErrCold
		}
		return nil
	}
	if _, err := f.ReadAt(p, off); err != nil {
		if errors.Is(err, io.EOF) {
			err = content.ErrCorrupt
		}
		return fmt.Errorf("%s at %d: %w", filepath.Base(f.Name()), off, err)
	}
	return nil
}
