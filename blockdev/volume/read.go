package volume

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/blockdev/volume/root"
	"github.com/grangemesh/grange/origin/content"
)

func (v *Volume) TryReadAt(p []byte, off int64) bool {
	if !v.mu.TryRLock() {
		return false
	}
	defer v.mu.RUnlock()
	for len(p) > 0 {
		e, n, err := v.locate(off, len(p), false)
		switch {
		case err != nil || v.closed || e.Seg == extents.SegBad:
			return false
		case e.N == 0:
			if !v.ground.Try(p[:n], off) {
				return false
			}
		case v.readExtent(v.slots, e, p[:n], false) != nil:
			return false
		}
		p, off = p[n:], off+int64(n)
	}
	return true
}

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

// pieceMax is how much is read at a time to be passed on: what a processor keeps close by.
const pieceMax = 128 << 10

// locate says what covers the byte at off in all layers; see view. Called with mu.
func (v *Volume) locate(off int64, length int, wait bool) (extents.Extent, int, error) {
	if e, n := v.openAt(off, length); e.N > 0 {
		return e, n, nil
	} else {
		return v.view.locate(off, n, wait)
	}
}

// openAt is locate in the open layer alone. Called with mu.
func (v *Volume) openAt(off int64, length int) (extents.Extent, int) {
	s := uint64(off / extents.SectorSize)
	e, ok := v.open.mem.At(s)
	return covering(e, ok, s, length)
}

// readers are the reads under way that don't hold mu and began between two changes of the view, whose files are closed only after them.
type readers struct {
	sync.WaitGroup
	before <-chan struct{} // closed when those of earlier ones are done
	done   chan struct{}
}

func newReaders(before <-chan struct{}) *readers {
	return &readers{before: before, done: make(chan struct{})}
}

// drain waits for these and all earlier ones. None may come any more.
func (r *readers) drain() {
	if r.before != nil {
		<-r.before
	}
	r.Wait()
}

// pin returns the view of now, whose files stay until its readers are Done. Called with mu.
func (v *Volume) pin() view {
	v.readers.Add(1)
	return v.view
}

// piece is a part of a read: of an extent, or of what lies under those seen so far.
type piece struct {
	p   []byte
	off int64
	extents.Extent
}

// ReadAt implements blockdev.Device. Only to look into the open layer takes the lock.
func (v *Volume) ReadAt(ctx context.Context, p []byte, off int64) error {
	var pieces []piece
	v.mu.RLock()
	if v.closed {
		v.mu.RUnlock()
		return fmt.Errorf("read at %d: %w", off, content.ErrClosed)
	}
	w := v.pin()
	for len(p) > 0 {
		e, n := v.openAt(off, len(p))
		pieces = append(pieces, piece{p[:n], off, e})
		p, off = p[n:], off+int64(n)
	}
	v.mu.RUnlock()
	misses, err := v.fill(w, pieces)
	w.readers.Done()
	if err != nil || len(misses) == 0 {
		return err
	}
	return w.ground.Read(ctx, misses)
}

// fill reads what layers have of the pieces, and returns the rest. A write that comes
// meanwhile is concurrent with the read, which may see either.
func (v *Volume) fill(w view, pieces []piece) (misses []root.Piece, err error) {
	v.cfg.Step("read")
	for _, x := range pieces {
		for p, off := x.p, x.off; len(p) > 0; {
			e, n := x.Extent, len(p)
			if e.N == 0 {
				if e, n, err = w.locate(off, len(p), true); err != nil {
					return nil, fmt.Errorf("read at %d: %w", off, err)
				}
			}
			switch {
			case e.N == 0:
				misses = append(misses, root.Piece{P: p[:n], Off: off})
			case e.Seg == extents.SegBad:
				return nil, fmt.Errorf("read at %d: %w: the journal entry that held it is lost", off, content.ErrCorrupt)
			default:
				if err := v.readExtent(w.slots, e, p[:n], true); err != nil {
					return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
				}
			}
			p, off = p[n:], off+int64(n)
		}
	}
	return misses, nil
}

// readExtent fills p, which begins where e does and is within it. The segments are those of a view that is pinned.
func (v *Volume) readExtent(slots []*segment, e extents.Extent, p []byte, wait bool) error {
	if e.Zeros() {
		clear(p)
		return nil
	}
	return journal.ReadExtent(&v.buffers, slots[e.Seg].file, e, p, wait)
}

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
		if v.closed {
			v.mu.RUnlock()
			return dst, content.ErrClosed
		}
		w := v.pin()
		e, n := v.openAt(off, int(min(length, extentsStep)))
		v.mu.RUnlock()
		var err error
		if e.N == 0 {
			e, n, err = w.locate(off, n, true)
		}
		w.readers.Done()
		if err != nil {
			return dst, err
		}
		if e.N > 0 {
			if !add(int64(n), e.State()) {
				return dst, nil
			}
		} else if more, err := w.ground.Extents(ctx, off, int64(n), add); err != nil || !more {
			return dst, err
		}
		off, length = off+int64(n), length-int64(n)
	}
	return dst, nil
}

// extentsStep bounds how much is mapped under one lock.
const extentsStep = 1 << 30
