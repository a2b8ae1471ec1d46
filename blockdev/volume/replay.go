package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/origin/content"
)

// CorruptError says what of a journal is lost. It wraps content.ErrCorrupt.
type CorruptError struct {
	File   string
	Offset int64 // of the entry in the file
	Seq    uint64
	// Start and Length are the bytes of the disk that the entry wrote; Length is 0
	// when the damage hides that.
	Start, Length int64
}

func (e *CorruptError) Error() string {
	where := "an unknown range of the disk"
	if e.Length > 0 {
		where = fmt.Sprintf("bytes %d to %d of the disk", e.Start, e.Start+e.Length)
	}
	return fmt.Sprintf("journal %s at %d, entry %d, which was flushed: %v: %s is lost; restore the file from a backup, or attach the volume read-only to save the rest",
		e.File, e.Offset, e.Seq, content.ErrCorrupt, where)
}

func (e *CorruptError) Unwrap() error { return content.ErrCorrupt }

// replay rebuilds the extent map from the segment files, cuts off a tail that was
// never synced, and returns what is lost of what was.
func (v *Volume) replay() (lost []*CorruptError, err error) {
	noted, slot, noNote := readNote(v.cfg.Dir, v.cfg.ID)
	left, noList := readKept(v.cfg.Dir, v.cfg.ID)
	numbers, gone, err := v.list(left)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(noNote, noList); err != nil {
		if !v.cfg.ReadOnly || len(numbers) == 0 { // then there is nothing to save
			return nil, err
		}
		v.cfg.Log.Error("what is left of a volume's journal may not be all", "why", err)
	}
	v.notes.seed, v.notes.last, v.notes.turn, v.through = seed(v.cfg.ID, 0), noted, slot, left.through
	if said := left.note(); said.after(noted) { // the note may be older
		noted = said
	}
	r := replayer{v: v, noted: noted, kept: left}
	if err := r.pass(numbers); err != nil {
		return nil, err
	}
	lost, tail := r.judge()
	if tail != nil { // what comes behind it is no part of the journal, though it may be whole
		if err := v.forget(); err != nil {
			return nil, err
		}
		r.stop = tail
		if err := r.pass(numbers); err != nil {
			return nil, err
		}
		if err := v.cut(tail, numbers); err != nil {
			return nil, err
		}
	}
	v.seq, v.told = r.next-1, r.durable
	for _, c := range lost {
		v.lose(c)
	}
	if end := v.end(); noted.after(end) && (len(lost) == 0 || end.number < noted.number) {
		c := &CorruptError{File: filepath.Join(v.cfg.Dir, segmentName(noted.number)), Seq: v.seq + 1}
		if end.number == noted.number {
			c.Offset = end.length
		}
		lost = append(lost, c)
	}
	if len(lost) == 0 && !v.cfg.ReadOnly {
		err = v.clear(gone, r.torn)
	}
	return lost, err
}

// clear removes segments that were given up before a crash, and torn ends, behind which
// the next segment will not always be to show that they are none of an entry.
func (v *Volume) clear(gone []uint64, torn []*segment) error {
	for _, s := range torn {
		if err := errors.Join(s.file.Truncate(s.size), s.file.Sync()); err != nil {
			return err
		}
	}
	for _, number := range gone {
		if err := os.Remove(filepath.Join(v.cfg.Dir, segmentName(number))); err != nil {
			return err
		}
	}
	return nil
}

// list returns the numbers of the segments that the journal has, rising, and of those
// there that it has given up.
func (v *Volume) list(left kept) (numbers, gone []uint64, err error) {
	files, err := os.ReadDir(v.cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files { // by name, and so by number
		name, is := strings.CutSuffix(f.Name(), ".seg")
		if !is {
			continue
		}
		number, err := strconv.ParseUint(name, 16, 64)
		switch {
		case err != nil || f.Name() != segmentName(number):
			return nil, nil, fmt.Errorf("%s: %w: not a name of a segment", filepath.Join(v.cfg.Dir, f.Name()), content.ErrCorrupt)
		case left.has(number):
			numbers = append(numbers, number)
		default:
			gone = append(gone, number)
		}
	}
	return numbers, gone, nil
}

type replayer struct {
	v     *Volume
	noted note
	kept  kept
	stop  *badEntry // nothing is read from there on

	window  pieces
	seed    uint32 // of the segment in it
	last    uint64 // number of the segment before
	next    uint64 // seq of the next entry
	durable uint64 // highest that an entry carries
	bad     []badEntry
	torn    []*segment // whose files are longer than they are
}

// badEntry is a place where an entry should be and is not.
type badEntry struct {
	segment uint64
	offset  int64
	entry   entry // its head, if that is whole; else of the seq that was due
	whole   bool
	last    bool // nothing good follows in the segment
}

func (r *replayer) pass(numbers []uint64) error {
	r.last, r.next, r.durable, r.bad, r.torn = 0, 1, r.noted.seq, nil, nil
	for _, number := range numbers {
		if r.stop != nil && (number > r.stop.segment || number == r.stop.segment && r.stop.offset < segmentHeader) {
			break
		}
		if err := r.segment(number); err != nil {
			return err
		}
		r.last = number
	}
	r.next = max(r.next, r.kept.seq+1)
	return nil
}

// segment replays one file: by its table, if all of it was synced, else entry by entry.
func (r *replayer) segment(number uint64) error {
	mode := os.O_RDWR
	if r.v.cfg.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(filepath.Join(r.v.cfg.Dir, segmentName(number)), mode, 0)
	if err != nil {
		return err
	}
	s := &segment{number: number, seed: seed(r.v.cfg.ID, number), file: f}
	r.seed = s.seed
	r.v.add(s)
	info, err := f.Stat()
	if err != nil {
		return err
	}
	s.size = info.Size()
	if r.stop != nil && number == r.stop.segment {
		s.size = min(s.size, r.stop.offset)
	}
	r.window.open(f, s.size)
	if err := r.begin(s); err != nil {
		return err
	}
	if r.noted.covers(number, s.size-1) {
		t, _, err := readTable(f, s.seed, s.size)
		if err == nil && t.seq+1 >= r.next {
			for _, e := range t.extents {
				e.seg = s.slot
				r.v.extents.put(e)
			}
			r.next, s.sealed, s.synced = t.seq+1, true, true
			return nil
		}
		s.synced = true
	}
	return r.entries(s)
}

func (r *replayer) begin(s *segment) error {
	if s.number > r.kept.through {
		r.next = max(r.next, r.kept.seq+1)
	}
	head, err := r.window.at(0, segmentHeader)
	if err != nil {
		return err
	}
	s.first, err = decodeSegment(head, r.v.cfg.ID, s.number)
	between := s.number <= r.kept.through && s.number > r.last+1  // there were segments, which have gone
	foreign := r.kept.through > 0 && s.number == r.kept.through+1 // begins where the list ends, or is not of its journal
	due := r.next
	switch {
	case err != nil:
		s.first = due
		r.bad = append(r.bad, badEntry{s.number, 0, entry{seq: due}, false, false})
	case s.first > due && !between && len(r.bad) == 0, s.first < due && foreign:
		r.bad = append(r.bad, badEntry{s.number, 0, entry{seq: due}, false, false})
	case s.first > due:
		r.next = s.first
	}
	// The bytes at the end of the segment before were no entry, as a table that a loss of
	// power has torn: none is missing.
	if n := len(r.bad); err == nil && s.first == due && n > 0 && r.bad[n-1].last && r.bad[n-1].segment == r.last && r.bad[n-1].entry.seq == due {
		before := r.v.chain[len(r.v.chain)-2]
		before.size, r.torn, r.bad = r.bad[n-1].offset, append(r.torn, before), r.bad[:n-1]
	}
	return nil
}

// entries replays a segment entry by entry. Where one is bad it looks for the next good
// one.
func (r *replayer) entries(s *segment) error {
	off := min(segmentHeader, s.size)
	_, table, noTable := readTable(s.file, s.seed, s.size)
	for off < s.size {
		if noTable == nil && table == off {
			s.sealed = true
			return nil
		}
		e, b, err := r.entry(off)
		if err != nil && !errors.Is(err, errNoEntry) {
			return err
		}
		if err == nil && e.seq >= r.next {
			if e.seq > r.next && len(r.bad) == 0 {
				r.bad = append(r.bad, badEntry{s.number, off, entry{seq: r.next}, false, false})
			}
			r.durable, r.next = max(r.durable, e.durable), e.seq+1
			r.v.apply(s.slot, off, e, b[entryHeader:])
			off += e.size()
			continue
		}
		bad := badEntry{s.number, off, entry{seq: r.next}, false, false}
		if e.seq == r.next {
			bad.entry, bad.whole = e, true
			r.durable = max(r.durable, e.durable)
		}
		next, err := r.nextEntry(off+1, r.next)
		if err != nil {
			return err
		}
		bad.last = next < 0
		r.bad = append(r.bad, bad)
		if bad.last {
			return nil
		}
		off = next
	}
	return nil
}

var errNoEntry = errors.New("no entry")

// entry returns the entry at off with its bytes. Without all of those, as they were
// summed, it is errNoEntry, with the head if that is whole.
func (r *replayer) entry(off int64) (entry, []byte, error) {
	b, err := r.window.at(off, headMax)
	if err != nil {
		return entry{}, nil, err
	}
	e, err := decodeEntry(r.seed, b)
	if err != nil {
		return entry{}, nil, errNoEntry
	}
	if b, err = r.window.at(off, int(e.size())); err != nil {
		return e, nil, err
	}
	if int64(len(b)) < e.size() {
		return e, nil, errNoEntry
	}
	for u := range e.units() {
		if unitSum(b[e.dataOffset():e.size()], u) != binary.LittleEndian.Uint32(b[entryHeader+4*u:]) {
			return e, nil, errNoEntry
		}
	}
	return e, b, nil
}

// nextEntry returns the place of the next good head with a later seq, from off on, or
// -1.
func (r *replayer) nextEntry(off int64, after uint64) (int64, error) {
	for off < r.window.size {
		b, err := r.window.at(off, windowSize)
		if err != nil {
			return 0, err
		}
		i := bytes.Index(b, []byte(entryMagic))
		if i < 0 {
			off += max(int64(len(b)-len(entryMagic)+1), 1) // it may lie across the end
			continue
		}
		off += int64(i)
		head, err := r.window.at(off, headMax)
		if err != nil {
			return 0, err
		}
		if e, err := decodeEntry(r.seed, head); err == nil && e.seq > after {
			return off, nil
		}
		off++
	}
	return -1, nil
}

// judge tells the tail from corruption.
func (r *replayer) judge() (lost []*CorruptError, tail *badEntry) {
	for _, x := range r.kept.left {
		size := int64(-1) // missing
		for _, s := range r.v.chain {
			if s.number == x.number {
				size = s.size
			}
		}
		if size != x.size {
			lost = append(lost, &CorruptError{File: filepath.Join(r.v.cfg.Dir, segmentName(x.number)), Offset: max(size, 0), Seq: r.next})
		}
	}
	for i, bad := range r.bad {
		switch {
		case bad.entry.seq <= r.durable || r.noted.covers(bad.segment, bad.offset):
			c := &CorruptError{File: filepath.Join(r.v.cfg.Dir, segmentName(bad.segment)), Offset: bad.offset, Seq: bad.entry.seq}
			if bad.whole && bad.entry.kind != kindMark {
				c.Start, c.Length = int64(bad.entry.start)*sectorSize, int64(bad.entry.sectors)*sectorSize
			}
			lost = append(lost, c)
		case len(lost) == 0:
			return nil, &r.bad[i]
		}
	}
	return lost, nil
}

// cut drops everything from a bad entry on: it was never synced. A read-only volume
// leaves it in the files.
func (v *Volume) cut(tail *badEntry, numbers []uint64) error {
	path := func(number uint64) string { return filepath.Join(v.cfg.Dir, segmentName(number)) }
	v.cfg.Log.Info("the unsynced end of a journal is cut off", "file", path(tail.segment), "at", tail.offset)
	if v.cfg.ReadOnly {
		return nil
	}
	for _, number := range slices.Backward(numbers) { // the last first: a crash leaves a journal with an end
		switch {
		case number > tail.segment, number == tail.segment && tail.offset < segmentHeader: // its header never reached the disk
			if err := os.Remove(path(number)); err != nil {
				return err
			}
		case number == tail.segment:
			return os.Truncate(path(number), tail.offset)
		}
	}
	return nil
}

// pieces reads a file in pieces that are larger than what is asked of it.
type pieces struct {
	file *os.File
	size int64
	buf  []byte // what is in memory, from off on
	off  int64
}

const (
	// headMax is the most that the head of an entry takes, with its sums.
	headMax = entryHeader + 4*(writeMax/unit)
	// windowSize is what is in memory of a journal that is replayed: any entry, and
	// more, so that small ones are read many at a time.
	windowSize = headMax + 2*writeMax
)

func (w *pieces) open(file *os.File, size int64) {
	w.file, w.size, w.buf, w.off = file, size, w.buf[:0], 0
}

// at returns n bytes at off, fewer at the end of the file, until the next call.
func (w *pieces) at(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), w.size-off))
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		if w.buf == nil {
			w.buf = make([]byte, 0, windowSize)
		}
		w.buf, w.off = w.buf[:min(int64(windowSize), w.size-off)], off
		if _, err := w.file.ReadAt(w.buf, off); err != nil {
			return nil, err
		}
	}
	return w.buf[off-w.off:][:n], nil
}
