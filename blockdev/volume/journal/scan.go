package journal

import (
	"bytes"
	"errors"
	"os"
)

// Window reads a segment in pieces that are larger than what is asked of it.
type Window struct {
	seed uint32
	file *os.File
	size int64
	buf  []byte // what is in memory, from off on
	off  int64
}

// WindowSize is what is in memory of a journal that is replayed: any entry, and
// more, so that small ones are read many at a time.
const WindowSize = HeadMax + 2*WriteMax

// Open begins with a segment of that size, whose sums have a seed.
func (w *Window) Open(file *os.File, size int64, seed uint32) {
	w.seed, w.file, w.size, w.buf, w.off = seed, file, size, w.buf[:0], 0
}

// at returns n bytes at off, fewer at the end of the file, until the next call.
func (w *Window) at(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), w.size-off))
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		if w.buf == nil {
			w.buf = make([]byte, 0, WindowSize)
		}
		w.buf, w.off = w.buf[:min(int64(WindowSize), w.size-off)], off
		if _, err := w.file.ReadAt(w.buf, off); err != nil {
			return nil, err
		}
	}
	return w.buf[off-w.off:][:n], nil
}

// ErrNoEntry says that where an entry should be there is none that is whole.
var ErrNoEntry = errors.New("no entry")

// Entry returns the entry at off with its bytes. Without all of those, as they were
// summed, it is ErrNoEntry, with the head if that is whole.
func (w *Window) Entry(off int64) (Entry, []byte, error) {
	b, err := w.at(off, HeadMax)
	if err != nil {
		return Entry{}, nil, err
	}
	e, err := DecodeEntry(w.seed, b)
	if err != nil {
		return Entry{}, nil, ErrNoEntry
	}
	if b, err = w.at(off, int(e.Size())); err != nil {
		return e, nil, err
	}
	if int64(len(b)) < e.Size() || !e.intact(b) {
		return e, nil, ErrNoEntry
	}
	return e, b, nil
}

// Next returns the place of the next good head with a later seq, from off on, or
// -1.
func (w *Window) Next(off int64, after uint64) (int64, error) {
	for off < w.size {
		b, err := w.at(off, WindowSize)
		if err != nil {
			return 0, err
		}
		i := bytes.Index(b, []byte(EntryMagic))
		if i < 0 {
			off += max(int64(len(b)-len(EntryMagic)+1), 1) // it may lie across the end
			continue
		}
		off += int64(i)
		head, err := w.at(off, HeadMax)
		if err != nil {
			return 0, err
		}
		if e, err := DecodeEntry(w.seed, head); err == nil && e.Seq > after {
			return off, nil
		}
		off++
	}
	return -1, nil
}
