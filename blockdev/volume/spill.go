package volume

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

	// spillPrefix begins the names of files of spilled layers. They are of one run of the process
	// and made anew from the segments, so they are neither synced nor kept.
	spillPrefix = ".layer-"
	spillPage   = 4096
	spillRecord = 36
	// perPage is how many extents a page has, beside their number and its sum.
	perPage = (spillPage - 8) / spillRecord
)

// spilled is a sorted list of extents in a file, in pages:
//
//	0     4  number of extents
//	4     36 each: first sector 8, offset 8, sectors 4, slot 4, before 4, entry 4, sum 4
//	4092  4  CRC32C of the bytes before
type spilled struct {
	usage
	file  *os.File
	index []uint64 // where each page begins
	pages *scratch.Pool
}

// spiller writes a spilled layer.
type spiller struct {
	*spilled
	page []byte // what of the last page there is
	n    uint32
	out  []byte // pages to be written
	off  int64
}

// spillBuffer is how much is written at a time.
const spillBuffer = 256 << 10

func newSpiller(dir string, pages *scratch.Pool) (*spiller, error) {
	f, err := os.CreateTemp(dir, spillPrefix+"*")
	if err != nil {
		return nil, err
	}
	return &spiller{spilled: &spilled{file: f, pages: pages}, page: make([]byte, 4, spillPage)}, nil
}

func (s *spiller) add(e extent) error {
	if s.n == 0 {
		s.index = append(s.index, e.start)
	}
	b := binary.LittleEndian.AppendUint64(s.page, e.start)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.data))
	for _, x := range [...]uint32{e.n, e.seg, e.before, e.entry, e.crc} {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	s.page, s.n = b, s.n+1
	s.account(e, 1)
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
	_, err := s.file.WriteAt(s.out, s.off)
	s.off += int64(len(s.out))
	s.out = s.out[:0]
	return err
}

func (s *spiller) finish() (*spilled, error) {
	if s.n > 0 {
		if err := s.turn(); err != nil {
			return nil, err
		}
	}
	return s.spilled, s.write()
}

// drop closes and removes the file.
func (s *spilled) drop() error { return errors.Join(s.file.Close(), os.Remove(s.file.Name())) }

func (s *spilled) rotten(page int) error {
	return fmt.Errorf("%s, page %d: %w: the list of what a volume has written can't be read; restart the node, which makes it anew", s.file.Name(), page, content.ErrCorrupt)
}

// read fills b with a page and returns how many extents it has.
func (s *spilled) read(page int, b []byte, wait bool) (int, error) {
	if err := readFile(s.file, b, int64(page)*spillPage, wait); err != nil {
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

func record(page []byte, i int) extent {
	r := page[4+i*spillRecord:]
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(r[at:]) }
	return extent{start: binary.LittleEndian.Uint64(r), data: int64(binary.LittleEndian.Uint64(r[8:])), n: u32(16), seg: u32(20), before: u32(24), entry: u32(28), crc: u32(32)}
}

func (s *spilled) at(sector uint64, wait bool) (extent, bool, error) {
	b := s.pages.Get(spillPage)
	defer s.pages.Put(b)
	first := sort.Search(len(s.index), func(i int) bool { return s.index[i] > sector })
	for page := max(first-1, 0); page < len(s.index); page++ {
		n, err := s.read(page, *b, wait)
		if err != nil {
			return extent{}, false, err
		}
		if i := sort.Search(n, func(i int) bool { return record(*b, i).end() > sector }); i < n {
			return record(*b, i), true, nil
		}
	}
	return extent{}, false, nil
}

func (s *spilled) all() cursor {
	b := make([]byte, spillPage)
	page, i, n := 0, 0, 0
	return func() (extent, bool, error) {
		for i == n {
			if page == len(s.index) {
				return extent{}, false, nil
			}
			var err error
			if n, err = s.read(page, b, true); err != nil {
				return extent{}, false, err
			}
			page, i = page+1, 0
		}
		i++
		return record(b, i-1), true, nil
	}
}

// gathered makes a list of extents: in memory, if it takes no more than room there, else
// in a file in dir.
func gathered(dir string, pages *scratch.Pool, extents cursor, room int64) (mem *extentMap, disk *spilled, err error) {
	mem = new(extentMap)
	var out *spiller
	for {
		e, ok, err := extents()
		switch {
		case err != nil || !ok:
		case out == nil && mem.size() <= room:
			mem.add(e)
		case out == nil:
			if out, err = mem.spill(dir, pages); err == nil {
				err = out.add(e)
			}
		default:
			err = out.add(e)
		}
		if err != nil && out != nil {
			err = errors.Join(err, out.drop())
		}
		if err != nil {
			return nil, nil, fmt.Errorf("list of what the volume has written: %w", err)
		}
		if !ok {
			break
		}
	}
	if out == nil && mem.size() > room {
		if out, err = mem.spill(dir, pages); err != nil {
			return nil, nil, err
		}
	}
	if out == nil {
		return mem, nil, nil
	}
	disk, err = out.finish()
	return nil, disk, err
}

// spill begins a file with what the map has.
func (m *extentMap) spill(dir string, pages *scratch.Pool) (*spiller, error) {
	out, err := newSpiller(dir, pages)
	if err != nil {
		return nil, err
	}
	for _, page := range m.pages {
		for _, e := range page {
			if err := out.add(e); err != nil {
				return nil, errors.Join(err, out.drop())
			}
		}
	}
	return out, nil
}

// errCold says that a read has to wait for the disk.
var errCold = errors.New("not in memory")

// readFile fills p; without wait only from the memory of the kernel.
func readFile(f *os.File, p []byte, off int64, wait bool) error {
	if !wait {
		if !pagecache.Read(f, p, off) {
			return errCold
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
