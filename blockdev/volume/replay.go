package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
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

// replay rebuilds the map from the segment files, cuts off a tail that was never synced,
// and returns what is lost of what was.
func (v *Volume) replay() (lost []*CorruptError, err error) {
	noted, slot, noNote := journal.ReadNote(v.cfg.Dir, v.cfg.ID)
	before := false // a snapshot needs what the root has, too
	for p := range v.kept {
		before = before || p.Seq < v.cfg.Base.Seq
	}
	found, gone, err := journal.List(v.cfg.Dir, slices.Concat([]content.VolumeID{v.cfg.ID}, v.cfg.Ancestors), v.cfg.Base, before)
	if err != nil {
		return nil, err
	}
	if noNote != nil {
		if !v.cfg.ReadOnly || len(found) == 0 { // then there is nothing to save
			return nil, noNote
		}
		v.cfg.Log.Error("what is left of a volume's journal may not be all", "why", noNote)
	}
	v.notes.Seed, v.notes.Last, v.notes.Turn = journal.Seed(v.cfg.ID, 0), noted, slot
	r := replayer{v: v, noted: noted}
	if err := r.pass(found); err != nil {
		return nil, err
	}
	lost, tail := r.judge()
	if len(lost) > 0 && v.cfg.ReadOnly { // what is behind the first bad entry is to be saved
		if err := v.forget(); err != nil {
			return nil, err
		}
		r.salvage, r.stop = true, tail
		if err := r.pass(found); err != nil {
			return nil, err
		}
	}
	if tail != nil && len(lost) == 0 {
		r.next = tail.entry.Seq
	}
	v.seq, v.told = r.next-1, r.durable
	for _, c := range lost {
		if c.Length > 0 { // reading it fails
			v.open.mem.Put(extents.Extent{Start: uint64(c.Start / extents.SectorSize), N: uint32(c.Length / extents.SectorSize), Seg: extents.SegBad})
		}
	}
	short := r.short(lost, tail)
	if tail != nil && len(lost) == 0 && (short == nil || v.cfg.ReadOnly) { // else each byte is left as it is
		if err := v.cut(tail); err != nil {
			return nil, err
		}
	}
	if lost = append(lost, short...); len(lost) > 0 {
		return lost, nil
	}
	if err = v.resume(); err == nil && !v.cfg.ReadOnly {
		err = v.clear(gone, r.torn)
	}
	return nil, err
}

// short returns what is said to be synced and is behind the end of what there is.
func (r *replayer) short(lost []*CorruptError, tail *badEntry) []*CorruptError {
	v := r.v
	if max(r.noted.Seq, r.needs) <= v.seq || len(lost) > 0 && v.number >= r.noted.Number {
		return nil
	}
	c := &CorruptError{File: filepath.Join(v.cfg.Dir, journal.Header{Epoch: v.cfg.Epoch, Number: r.noted.Number}.Name()), Seq: v.seq + 1}
	if n := len(v.chain); tail != nil && len(lost) == 0 {
		c.File, c.Offset = v.path(tail.file), tail.offset
	} else if n > 0 && v.chain[n-1].Number == r.noted.Number {
		c.File, c.Offset = v.path(v.chain[n-1]), v.chain[n-1].size
	}
	return []*CorruptError{c}
}

// resume goes on with the last segment, if it is of this epoch and has no end yet. One
// that nothing was written to goes.
func (v *Volume) resume() error {
	n := len(v.chain)
	if n == 0 || v.cfg.ReadOnly {
		return nil
	}
	for _, s := range v.chain[:n-1] { // a kill may have kept its table from it
		s.sealed = true
	}
	last := v.chain[n-1]
	if last.empty() {
		return errors.Join(v.drop(last), v.resume())
	}
	if mine := last.Volume == v.cfg.ID && last.Epoch == v.cfg.Epoch; mine && !last.sealed {
		v.tail, last.synced = last, false
	}
	last.sealed = v.tail == nil
	return nil
}

// clear removes files that were given up before a crash, and torn ends, behind which
// the next segment will not always be to show that they are none of an entry.
func (v *Volume) clear(gone []string, torn []*segment) error {
	torn = slices.DeleteFunc(torn, func(s *segment) bool { return !slices.Contains(v.chain, s) }) // it went since
	for _, s := range torn {
		if err := errors.Join(s.file.Truncate(s.size), s.file.Sync()); err != nil {
			return err
		}
	}
	for _, name := range gone {
		if err := os.Remove(filepath.Join(v.cfg.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

type replayer struct {
	v       *Volume
	noted   journal.Note
	salvage bool      // what comes behind bad entries counts
	stop    *badEntry // nothing is read from there on

	window  journal.Window // of the segment that is read
	last    uint64         // number of the segment before
	next    uint64         // seq of the next entry
	durable uint64         // highest that an entry carries
	needs   uint64         // highest that a merged segment does
	bad     []badEntry
	torn    []*segment // whose files are longer than they are
}

// badEntry is a place where an entry should be and is not.
type badEntry struct {
	file   *segment
	offset int64
	entry  journal.Entry // its head, if that is whole; else of the seq that was due
	whole  bool
	last   bool // nothing good follows in the segment
}

func (r *replayer) pass(all []journal.Found) error {
	r.last, r.next, r.durable, r.bad, r.torn = r.v.cfg.Base.Number, r.v.cfg.Base.Seq+1, r.noted.Seq, nil, nil
	for _, x := range all {
		if r.stop != nil && (x.Number > r.stop.file.Number || x.Number == r.stop.file.Number && r.stop.offset < journal.HeaderSize) {
			break
		}
		s, err := r.open(x)
		if err != nil {
			return err
		}
		if err := r.segment(s, x.Good); err != nil {
			return err
		}
		if s.last = r.next - 1; len(r.bad) == 0 {
			if err := r.v.bound(s); err != nil {
				return err
			}
		}
		r.last = s.Number
	}
	return nil
}

func (r *replayer) open(x journal.Found) (*segment, error) {
	mode := os.O_RDWR
	if r.v.cfg.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(filepath.Join(r.v.cfg.Dir, x.File), mode, 0)
	if err != nil {
		return nil, err
	}
	s := &segment{Header: x.Header, seed: journal.Seed(x.Volume, x.Number), file: f}
	r.v.add(s)
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if s.size = info.Size(); r.stop != nil && s.Number == r.stop.file.Number {
		s.size = min(s.size, r.stop.offset)
	}
	return s, nil
}

// bound freezes what was replayed so far where a snapshot wants it, or memory.
func (v *Volume) bound(s *segment) error {
	if v.kept[s.through()] > 0 {
		s.sealed = true
	}
	if !s.sealed || v.kept[s.through()] == 0 && v.open.bytes() <= v.cfg.Memory/2 {
		return nil
	}
	v.freezeAt(s.through())
	return v.joinLayers()
}

// segment replays one file: by its table, if all of it was synced, else entry by entry.
func (r *replayer) segment(s *segment, good bool) error {
	r.window.Open(s.file, s.size, s.seed)
	r.begin(s, good)
	if s.Merged > 0 { // it was synced before it had its name
		r.durable, r.needs = max(r.durable, s.Merged), max(r.needs, s.Needs)
	}
	if s.Merged > 0 || r.noted.Covers(s.Number, s.size-1) {
		t, body, err := journal.ReadTable(s.file, s.seed, s.size)
		if err == nil && t.Seq+1 >= r.next {
			for _, e := range t.Extents {
				e.Seg = s.slot
				r.lay(e)
			}
			r.next, s.body, s.sealed, s.synced = t.Seq+1, body, true, true
			return nil
		}
		s.synced = true
	}
	return r.entries(s)
}

// applies reports whether what is replayed counts.
func (r *replayer) applies() bool { return len(r.bad) == 0 || r.salvage }

func (r *replayer) lay(e extents.Extent) {
	if r.applies() {
		r.v.open.mem.Put(e)
	}
}

func (r *replayer) miss(s *segment, off int64) {
	r.bad = append(r.bad, badEntry{file: s, offset: off, entry: journal.Entry{Seq: r.next}})
}

// begin checks that a segment follows what was replayed so far.
func (r *replayer) begin(s *segment, good bool) {
	due, first := s.After.Seq+1, len(r.v.chain) == 1
	switch {
	case !good:
		r.miss(s, 0)
		return
	case first && s.After.Number <= r.last && due <= r.next: // the root has a part of it
		r.next = due
		return
	}
	// The bytes at the end of the segment before were no entry, as a table that a loss of
	// power has torn: none is missing.
	if n := len(r.bad); due == r.next && n > 0 && r.bad[n-1].last && r.bad[n-1].file.Number == r.last && r.bad[n-1].entry.Seq == due {
		before := r.bad[n-1].file
		before.size, before.sealed, r.torn, r.bad = r.bad[n-1].offset, true, append(r.torn, before), r.bad[:n-1]
	}
	if (due != r.next || s.After.Number != r.last) && len(r.bad) == 0 {
		r.miss(s, 0)
	}
	r.next = max(r.next, due)
}

// entries replays a segment entry by entry. Where one is bad it looks for the next good
// one.
func (r *replayer) entries(s *segment) error {
	off := min(journal.HeaderSize, s.size)
	_, table, noTable := journal.ReadTable(s.file, s.seed, s.size)
	for off < s.size {
		if noTable == nil && table == off {
			s.sealed = true
			break
		}
		e, b, err := r.window.Entry(off)
		if err != nil && !errors.Is(err, journal.ErrNoEntry) {
			return err
		}
		if err == nil && e.Seq >= r.next {
			if e.Seq > r.next && s.Merged == 0 && len(r.bad) == 0 {
				r.miss(s, off)
			}
			if r.applies() {
				r.v.apply(s.slot, off, e, b[extents.EntryHeader:])
				s.entries++
			}
			if s.Merged == 0 {
				r.durable, r.next = max(r.durable, e.Durable), e.Seq+1
			}
			off += e.Size()
			s.body = off
			continue
		}
		bad := badEntry{file: s, offset: off, entry: journal.Entry{Seq: r.next}}
		if e.Seq == r.next || s.Merged > 0 && e.Seq == s.Merged {
			bad.entry, bad.whole = e, true
			r.durable = max(r.durable, e.Durable)
		}
		next, err := r.window.Next(off+1, r.next)
		if err != nil {
			return err
		}
		bad.last = next < 0
		r.bad = append(r.bad, bad)
		if bad.last {
			break
		}
		off = next
	}
	if s.Merged > 0 {
		if noTable != nil { // it is not known what is missing
			r.miss(s, s.size)
		}
		r.next = max(r.next, s.Merged+1)
	}
	return nil
}

// judge tells the tail from corruption.
func (r *replayer) judge() (lost []*CorruptError, tail *badEntry) {
	for i, bad := range r.bad {
		switch {
		case bad.entry.Seq <= r.durable || r.noted.Covers(bad.file.Number, bad.offset):
			c := &CorruptError{File: r.v.path(bad.file), Offset: bad.offset, Seq: bad.entry.Seq}
			if bad.whole && bad.entry.Kind != journal.KindMark {
				c.Start, c.Length = int64(bad.entry.Start)*extents.SectorSize, int64(bad.entry.Sectors)*extents.SectorSize
			}
			lost = append(lost, c)
		case tail == nil:
			tail = &r.bad[i]
		}
	}
	return lost, tail
}

func (v *Volume) path(s *segment) string { return filepath.Join(v.cfg.Dir, s.Name()) }

// cut drops everything from a bad entry on: it was never synced. A read-only volume
// leaves it in the files.
func (v *Volume) cut(tail *badEntry) error {
	v.cfg.Log.Info("the unsynced end of a journal is cut off", "file", v.path(tail.file), "at", tail.offset)
	for len(v.chain) > 0 { // the last first: a crash leaves a journal with an end
		last := v.chain[len(v.chain)-1]
		if last == tail.file && tail.offset >= journal.HeaderSize {
			last.size, last.last, last.sealed = tail.offset, tail.entry.Seq-1, false
			last.body = last.size
			if v.cfg.ReadOnly {
				return nil
			}
			return last.file.Truncate(last.size)
		}
		if err := v.drop(last); err != nil { // as if its header never reached the disk
			return err
		}
		if last == tail.file {
			break
		}
	}
	return nil
}

// drop removes the last segment, of which nothing is to be kept. A read-only volume leaves
// the file.
func (v *Volume) drop(last *segment) error {
	v.chain = v.chain[:len(v.chain)-1]
	v.number = v.cfg.Base.Number
	if n := len(v.chain); n > 0 {
		v.number = v.chain[n-1].Number
	}
	err := last.file.Close()
	if err == nil && !v.cfg.ReadOnly {
		err = os.Remove(v.path(last))
	}
	return err
}
