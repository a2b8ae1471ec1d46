package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/pagecache"
	"github.com/grangemesh/grange/origin/content"
)

// parallelReads is how many chunks one read waits for at once.
const parallelReads = 16

// TryReadAt implements blockdev.Device.
func (v *Volume) TryReadAt(p []byte, off int64) bool {
	if !v.mu.TryRLock() {
		return false
	}
	defer v.mu.RUnlock()
	for len(p) > 0 {
		e, n := v.locate(off, len(p))
		switch {
		case e.seg == segBad:
			return false
		case e.n == 0:
			if !v.trySource(p[:n], off) {
				return false
			}
		case v.readExtent(e, p[:n], promptly) != nil:
			return false
		}
		p, off = p[n:], off+int64(n)
	}
	return true
}

// TryReadTo implements blockdev.Device.
func (v *Volume) TryReadTo(w io.WriterAt, n int, off int64) bool {
	buf := v.buffers.Get(min(n, pieceMax))
	defer v.buffers.Put(buf)
	for at := 0; at < n; {
		piece := (*buf)[:min(n-at, pieceMax)]
		if !v.TryReadAt(piece, off+int64(at)) {
			return false
		}
		if _, err := w.WriteAt(piece, int64(at)); err != nil {
			return false
		}
		at += len(piece)
	}
	return true
}

// pieceMax is how much is read at a time to be passed on: what a processor keeps
// close by.
const pieceMax = 128 << 10

// locate says what covers the byte at off, and how many bytes of length it does;
// an extent without sectors is the source. Called with mu.
func (v *Volume) locate(off int64, length int) (extent, int) {
	if v.closed {
		return extent{seg: segBad}, length
	}
	s := uint64(off / sectorSize)
	e, ok := v.extents.at(s)
	if !ok || e.start >= s+uint64(length/sectorSize) {
		return extent{}, length
	}
	if e.start > s {
		return extent{}, int(e.start-s) * sectorSize
	}
	e = e.from(s)
	return e, min(length, int(e.n)*sectorSize)
}

func (v *Volume) trySource(p []byte, off int64) bool {
	for len(p) > 0 {
		if v.cfg.Source == nil || off >= v.cfg.SourceSize {
			clear(p)
			return true
		}
		index, at, n := v.chunk(off, len(p))
		if !v.cfg.Source.TryReadChunk(index, at, p[:n]) {
			return false
		}
		p, off = p[n:], off+int64(n)
	}
	return true
}

// chunk says in which chunk of the source off lies, where, and how many bytes of
// length it has.
func (v *Volume) chunk(off int64, length int) (index uint64, at, n int) {
	size := int64(v.cfg.ChunkSize)
	at = int(off % size)
	return uint64(off / size), at, min(length, v.cfg.ChunkSize-at, int(min(v.cfg.SourceSize-off, int64(length))))
}

// ReadAt implements blockdev.Device.
func (v *Volume) ReadAt(ctx context.Context, p []byte, off int64) error {
	var misses []miss
	v.mu.RLock()
	for len(p) > 0 {
		e, n := v.locate(off, len(p))
		switch {
		case v.closed:
			v.mu.RUnlock()
			return fmt.Errorf("read at %d: %w", off, content.ErrClosed)
		case e.seg == segBad:
			v.mu.RUnlock()
			return fmt.Errorf("read at %d: %w: the journal entry that held it is lost", off, content.ErrCorrupt)
		case e.n == 0:
			misses = append(misses, miss{p[:n], off})
		default:
			if err := v.readExtent(e, p[:n], patiently); err != nil {
				v.mu.RUnlock()
				return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
			}
		}
		p, off = p[n:], off+int64(n)
	}
	v.mu.RUnlock()
	if len(misses) == 0 {
		return nil
	}
	return v.readSource(ctx, misses)
}

// miss is a part of a read that the source answers. A write that comes meanwhile
// is concurrent with the read, which may see either.
type miss struct {
	p   []byte
	off int64
}

// readSource reads all parts, several chunks at a time.
func (v *Volume) readSource(ctx context.Context, misses []miss) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelReads)
	for _, m := range misses {
		for p, off := m.p, m.off; len(p) > 0; {
			if v.cfg.Source == nil || off >= v.cfg.SourceSize {
				clear(p)
				break
			}
			index, at, n := v.chunk(off, len(p))
			part := p[:n]
			if !v.cfg.Source.TryReadChunk(index, at, part) {
				group.Go(func() error { return v.cfg.Source.ReadChunk(ctx, index, at, part) })
			}
			p, off = p[n:], off+int64(n)
		}
	}
	return group.Wait()
}

type reader func(f *os.File, p []byte, off int64) error

func patiently(f *os.File, p []byte, off int64) error {
	if _, err := f.ReadAt(p, off); err != nil {
		return fmt.Errorf("journal %s at %d: %w: %w", f.Name(), off, content.ErrCorrupt, err)
	}
	return nil
}

// errCold says that a read has to wait for the disk.
var errCold = errors.New("not in memory")

func promptly(f *os.File, p []byte, off int64) error {
	if !pagecache.Read(f, p, off) {
		return errCold
	}
	return nil
}

// readExtent fills p, which begins where e does and is within it, and checks the
// sums of the units that it touches. Called with mu.
func (v *Volume) readExtent(e extent, p []byte, read reader) error {
	if e.zeros() {
		clear(p)
		return nil
	}
	f := v.slots[e.seg].file
	head := int(e.before%unitSectors) * sectorSize // of the first unit, before p
	first := int(e.before / unitSectors)
	begin := e.data - int64(head) // of the first unit touched
	entryBytes := int(e.entry) * sectorSize
	units := (head + len(p) + unit - 1) / unit
	span := min(units*unit, entryBytes-first*unit)
	if head == 0 && span == len(p) { // whole units, read in place
		if err := read(f, p, begin); err != nil {
			return err
		}
		return v.check(e, p, first, read)
	}
	buf := v.buffers.Get(span)
	defer v.buffers.Put(buf)
	if err := read(f, *buf, begin); err != nil {
		return err
	}
	copy(p, (*buf)[head:])
	return v.check(e, *buf, first, read)
}

// check compares whole units with the sums of their entry, from unit first on.
func (v *Volume) check(e extent, b []byte, first int, read reader) error {
	f := v.slots[e.seg].file
	all := (int(e.entry) + unitSectors - 1) / unitSectors
	if all == 1 {
		if sum(b) != e.crc {
			return e.rotten(f)
		}
		return nil
	}
	start := e.data - int64(e.before)*sectorSize // of the entry's data
	units := (len(b) + unit - 1) / unit
	sums := v.buffers.Get(4 * units)
	defer v.buffers.Put(sums)
	at := start - 4*int64(all) + 4*int64(first)
	if err := read(f, *sums, at); err != nil {
		return err
	}
	for u := range units {
		if unitSum(b, u) != binary.LittleEndian.Uint32((*sums)[4*u:]) {
			return e.rotten(f)
		}
	}
	return nil
}

func (e extent) rotten(f *os.File) error {
	return fmt.Errorf("journal %s near %d: %w: the checksum of the data does not match", f.Name(), e.data, content.ErrCorrupt)
}

// Extents implements blockdev.Device.
func (v *Volume) Extents(ctx context.Context, dst []blockdev.Extent, off, length int64, limit int) ([]blockdev.Extent, error) {
	begin := len(dst)
	add := func(n int64, state blockdev.State) bool {
		if last := len(dst) - 1; last >= begin && dst[last].State == state {
			dst[last].Length += n
			return true
		}
		if len(dst)-begin >= limit {
			return false
		}
		dst = append(dst, blockdev.Extent{Length: n, State: state})
		return true
	}
	for length > 0 {
		v.mu.RLock()
		e, n := v.locate(off, int(min(length, extentsStep)))
		v.mu.RUnlock()
		if e.n > 0 || e.seg == segBad {
			if !add(int64(n), e.state()) {
				return dst, nil
			}
		} else if more, err := v.sourceExtents(ctx, off, int64(n), add); err != nil || !more {
			return dst, err
		}
		off, length = off+int64(n), length-int64(n)
	}
	return dst, nil
}

// extentsStep bounds how much is mapped under one lock.
const extentsStep = 1 << 30

// sourceExtents tells holes of the source from its data; more is false when there
// is no room for another extent.
func (v *Volume) sourceExtents(ctx context.Context, off, length int64, add func(int64, blockdev.State) bool) (more bool, err error) {
	end := off + length
	size := int64(v.cfg.ChunkSize)
	for off < end {
		if v.cfg.Source == nil || off >= v.cfg.SourceSize {
			return add(end-off, blockdev.Hole), nil
		}
		start, stop, err := v.cfg.Source.NextData(ctx, uint64(off/size))
		if errors.Is(err, io.EOF) {
			return add(end-off, blockdev.Hole), nil
		}
		if err != nil {
			return false, err
		}
		if hole := min(int64(start)*size, end); hole > off {
			if !add(hole-off, blockdev.Hole) {
				return false, nil
			}
			off = hole
			continue
		}
		data := min(int64(stop)*size, end)
		if !add(data-off, blockdev.Data) {
			return false, nil
		}
		off = data
	}
	return true, nil
}
