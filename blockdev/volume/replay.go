package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
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
	names, err := filepath.Glob(filepath.Join(v.cfg.Dir, "*.seg"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	noted, err := readNote(v.cfg.Dir)
	if err != nil && !v.cfg.ReadOnly {
		return nil, err
	}
	v.notes.last = noted
	r := replayer{v: v, next: 1}
	for _, name := range names {
		if err := r.segment(name); err != nil {
			return nil, err
		}
	}
	r.durable = max(r.durable, noted.seq)
	lost, err = r.finish(noted)
	if end := v.end(); err == nil && noted.after(end) && (len(lost) == 0 || end.number < noted.number) {
		c := &CorruptError{File: filepath.Join(v.cfg.Dir, segmentName(noted.number)), Seq: v.seq + 1}
		if end.number == noted.number {
			c.Offset = end.length
		}
		lost = append(lost, c)
	}
	return lost, err
}

type replayer struct {
	v       *Volume
	next    uint64 // seq of the next entry
	durable uint64 // highest that an entry carries
	bad     []badEntry
}

// badEntry is a place where an entry should be and is not.
type badEntry struct {
	segment int
	offset  int64
	entry   entry // its head, if that is whole; else of the seq that was due
	whole   bool
	last    bool // nothing good follows in the segment
}

// segment replays one file. Where an entry is bad it looks for the next good one.
func (r *replayer) segment(name string) error {
	number, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), ".seg"), 16, 64)
	if err != nil {
		return fmt.Errorf("%s: %w: not a name of a segment", name, content.ErrCorrupt)
	}
	mode := os.O_RDWR
	if r.v.cfg.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(name, mode, 0)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(f) // at most segmentMax and one entry
	if err != nil {
		return errors.Join(err, f.Close())
	}
	index := len(r.v.segments)
	r.v.segments = append(r.v.segments, &segment{number, f, int64(len(b))})
	if first, err := decodeSegment(b, r.v.meta.ID, number); err != nil || first > r.next && len(r.bad) == 0 {
		r.bad = append(r.bad, badEntry{index, 0, entry{seq: r.next}, false, false})
	} else if first > r.next {
		r.next = first
	}
	off := int64(min(segmentHeader, len(b)))
	for off < int64(len(b)) {
		e, err := decodeEntry(b[off:])
		if err == nil && off+e.size() <= int64(len(b)) && e.seq >= r.next && r.sound(e, b[off:]) {
			if e.seq > r.next && len(r.bad) == 0 {
				r.bad = append(r.bad, badEntry{index, off, entry{seq: r.next}, false, false})
			}
			r.apply(index, off, e, b[off:])
			off += e.size()
			continue
		}
		bad := badEntry{index, off, entry{seq: r.next}, false, false}
		if err == nil && e.seq == r.next {
			bad.entry, bad.whole = e, true
			r.durable = max(r.durable, e.durable)
		}
		skip := nextEntry(b[off+1:], r.next)
		bad.last = skip < 0
		r.bad = append(r.bad, bad)
		if bad.last {
			break
		}
		off += 1 + skip
	}
	return nil
}

// sound checks the data of an entry against its sums.
func (r *replayer) sound(e entry, b []byte) bool {
	if e.kind != kindData {
		return true
	}
	data := b[e.dataOffset():e.size()]
	for u := range e.units() {
		part := data[u*unit : min((u+1)*unit, len(data))]
		if crc32.Checksum(part, castagnoli()) != binary.LittleEndian.Uint32(b[entryHeader+4*u:]) {
			return false
		}
	}
	return true
}

// nextEntry returns the offset of the next good head with a later seq, or -1.
func nextEntry(b []byte, after uint64) int64 {
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte(entryMagic))
		if i < 0 {
			return -1
		}
		at += i
		if e, err := decodeEntry(b[at:]); err == nil && e.seq > after {
			return int64(at)
		}
		at++
	}
}

func (r *replayer) apply(index int, off int64, e entry, b []byte) {
	r.durable = max(r.durable, e.durable)
	r.next = e.seq + 1
	r.v.apply(uint32(index), off, e, b[entryHeader:])
}

// finish tells the tail from corruption.
func (r *replayer) finish(noted note) (lost []*CorruptError, err error) {
	v := r.v
	for i, bad := range r.bad {
		s := v.segments[bad.segment]
		if bad.entry.seq <= r.durable || noted.covers(s.number, bad.offset) {
			c := &CorruptError{File: s.file.Name(), Offset: bad.offset, Seq: bad.entry.seq}
			if bad.whole && bad.entry.kind != kindMark {
				c.Start, c.Length = int64(bad.entry.start)*sectorSize, int64(bad.entry.sectors)*sectorSize
				v.lose(bad.entry)
			}
			lost = append(lost, c)
			continue
		}
		if i == 0 || len(lost) == 0 {
			v.told = r.durable
			return lost, v.cut(bad)
		}
	}
	v.seq, v.told = r.next-1, r.durable
	return lost, nil
}

// cut drops everything from a bad entry on: it was never synced. A read-only
// volume leaves it in the files.
func (v *Volume) cut(bad badEntry) error {
	drop := func(s *segment) error {
		err := s.file.Close()
		if !v.cfg.ReadOnly {
			err = errors.Join(err, os.Remove(s.file.Name()))
		}
		return err
	}
	for _, s := range v.segments[bad.segment+1:] {
		if err := drop(s); err != nil {
			return err
		}
	}
	v.segments = v.segments[:bad.segment+1]
	s := v.segments[bad.segment]
	v.cfg.Log.Info("the unsynced end of a journal is cut off", "file", s.file.Name(), "at", bad.offset, "bytes", s.size-bad.offset)
	v.seq = bad.entry.seq - 1
	if bad.offset < segmentHeader { // the header itself never reached the disk
		v.segments = v.segments[:bad.segment]
		return drop(s)
	}
	s.size = bad.offset
	if v.cfg.ReadOnly {
		return nil
	}
	return s.file.Truncate(bad.offset)
}
