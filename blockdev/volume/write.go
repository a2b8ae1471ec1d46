package volume

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// WriteAt implements blockdev.Device.
func (v *Volume) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	v.waiting.Add(1)
	v.mu.Lock()
	v.waiting.Add(-1)
	v.data.Reset(p)
	err := v.write(&v.data, len(p), off)
	v.data.Reset(nil)
	v.mu.Unlock()
	if err == nil && fua {
		err = v.Flush(ctx)
	}
	return err
}

// TryWriteFrom implements blockdev.Device: an append to a file needs no wait but
// the kernel's own. A new segment is left to WriteAt.
func (v *Volume) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	if v.waiting.Load() > 0 || !v.mu.TryLock() { // a write that waits is not overtaken
		return false
	}
	defer v.mu.Unlock()
	return n <= writeMax && !v.full() && v.write(data, n, off) == nil
}

// write appends one entry for each writeMax of data. Called with mu.
func (v *Volume) write(data io.ReaderAt, n int, off int64) error {
	for at := 0; at < n; {
		part := min(n-at, writeMax)
		e := entry{kind: kindData, start: uint64((off + int64(at)) / sectorSize), sectors: uint32(part / sectorSize)}
		if err := v.append(e, data, int64(at)); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", part, off+int64(at), err)
		}
		at += part
	}
	return nil
}

// append writes an entry, whose data begins at byte at of data, to the open segment
// and lays it over the map. A full disk leaves the journal as it was. Called with mu.
func (v *Volume) append(e entry, data io.ReaderAt, at int64) error {
	switch {
	case v.closed:
		return content.ErrClosed
	case v.cfg.ReadOnly:
		return content.ErrReadOnly
	case v.failed != nil:
		return v.failed
	}
	if err := v.roll(); err != nil {
		return err
	}
	e.seq, e.durable = v.seq+1, v.durable
	s := v.chain[len(v.chain)-1]
	b := v.buffers.Get(int(e.size()))
	defer v.buffers.Put(b)
	if e.kind == kindData {
		p := (*b)[e.dataOffset():]
		if n, err := data.ReadAt(p, at); n < len(p) {
			return err
		}
	}
	e.seal(s.seed, *b)
	if _, err := s.file.WriteAt(*b, s.size); err != nil {
		v.cutBack(s)
		return v.refused(err)
	}
	v.seq++
	if v.noSpace {
		v.noSpace = false
		v.cfg.Log.Info("there is room for a volume's writes again", "dir", v.cfg.Dir)
	}
	v.told = e.durable
	if e.kind != kindMark {
		v.written = v.seq
	}
	v.apply(s.slot, s.size, e, (*b)[entryHeader:])
	s.size += e.size()
	return nil
}

// cutBack removes what a failed write may have left behind the end of a segment.
// Called with mu.
func (v *Volume) cutBack(s *segment) {
	if err := s.file.Truncate(s.size); err != nil {
		v.failed = fmt.Errorf("the journal took a part of an entry and can't be cut back: %w", err)
	}
}

// refused says what a failed write means to a guest, and of a full disk, once, to the
// log. Called with mu.
func (v *Volume) refused(err error) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	if !v.noSpace {
		v.noSpace = true
		v.cfg.Log.Error("the disk is full, and a volume's writes fail until there is room", "dir", v.cfg.Dir, "err", err)
	}
	return fmt.Errorf("%w: %w", content.ErrNoSpace, err)
}

// apply lays an entry of the segment in a slot over the map; sums follow its head.
func (v *Volume) apply(slot uint32, off int64, e entry, sums []byte) {
	x := extent{start: e.start, n: e.sectors, seg: slot}
	if e.kind == kindMark || e.sectors == 0 {
		return
	}
	if e.kind == kindData {
		x.data = off + e.dataOffset()
	}
	if e.kind != kindZero {
		x.entry = e.sectors
	}
	if e.units() == 1 {
		x.crc = binary.LittleEndian.Uint32(sums)
	}
	v.extents.put(x)
}

// lose marks the range of a lost entry, so that reading it fails.
func (v *Volume) lose(c *CorruptError) {
	if c.Length > 0 {
		v.extents.put(extent{start: uint64(c.Start / sectorSize), n: uint32(c.Length / sectorSize), seg: segBad})
	}
}

// full reports whether the next entry needs a new segment. Called with mu.
func (v *Volume) full() bool {
	n := len(v.chain)
	return n == 0 || v.chain[n-1].sealed || v.chain[n-1].size >= v.cfg.SegmentSize
}

// roll opens a new segment when there is none or the last one is full, whose table it
// writes. Nobody waits for the disk here: what is full by now is synced beside. Called
// with mu.
func (v *Volume) roll() error {
	if !v.full() {
		return nil
	}
	number := v.through + 1
	if n := len(v.chain); n > 0 {
		last := v.chain[n-1]
		number = max(number, last.number+1)
		if !last.sealed {
			v.seal(last)
		}
	}
	s, err := createSegment(v.cfg.Dir, v.cfg.ID, v.cfg.Epoch, number, v.seq+1)
	if err != nil {
		return v.refused(err)
	}
	v.add(s)
	v.newNames = true
	if len(v.chain) > 1 && v.tidying.CompareAndSwap(false, true) {
		v.work.Go(func() {
			v.tidying.Store(false) // who rolls from now on may find that this one has not seen it
			v.tidy()
		})
	}
	return nil
}

// add gives a segment a slot and makes it the last one.
func (v *Volume) add(s *segment) {
	slot := slices.Index(v.slots, nil)
	if slot < 0 {
		slot = len(v.slots)
		v.slots, v.extents.live = append(v.slots, nil), append(v.extents.live, 0)
	}
	s.slot = uint32(slot)
	v.slots[slot], v.chain = s, append(v.chain, s)
}

// fail stops the volume: what a failed sync has dropped is not known, and trying
// again would report success for it. Called with mu.
func (v *Volume) fail(err error) error {
	v.failed = fmt.Errorf("the journal could not be synced, and the volume has stopped: %w", err)
	v.cfg.Log.Error("volume stopped", "dir", v.cfg.Dir, "err", err)
	return v.failed
}

// Flush implements blockdev.Device. Calls at once share a sync.
func (v *Volume) Flush(context.Context) error {
	v.mu.RLock()
	target := v.written
	v.mu.RUnlock()
	v.syncing.Lock()
	defer v.syncing.Unlock()
	v.mu.RLock()
	due, done := v.due(), v.durable >= target
	v.mu.RUnlock()
	switch {
	case due.err != nil:
		return fmt.Errorf("flush: %w", due.err)
	case done || len(due.segments) == 0:
		return nil
	}
	if err := v.carry(due); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// due is what a sync has to make durable.
type due struct {
	segments []*segment
	newNames bool
	end      note
	last     uint64 // seq of the last entry in it that is not a mark
	err      error  // why nothing can be synced
}

// due returns what has to be synced by now. Called with mu.
func (v *Volume) due() due {
	switch {
	case v.closed:
		return due{err: content.ErrClosed}
	case v.failed != nil:
		return due{err: v.failed}
	}
	d := due{newNames: v.newNames, end: v.end(), last: v.written}
	first := len(v.chain)
	for first > 0 && !v.chain[first-1].synced {
		first--
	}
	d.segments = slices.Clone(v.chain[first:])
	return d
}

// carry makes durable what is due. Called with syncing.
func (v *Volume) carry(d due) error {
	err := v.sync(d.segments, d.newNames)
	if err == nil {
		v.note(d.end)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		// The folder could not even be opened, so no sync of it has failed.
		return fmt.Errorf("this process has too many files open; the next flush tries again: %w", err)
	case err != nil:
		return v.fail(err)
	}
	v.durable = max(v.durable, d.last)
	v.settle(d.segments)
	v.newNames = v.newNames && v.chain[len(v.chain)-1].number != d.end.number
	v.mark()
	return nil
}

// settle marks segments as synced that don't grow any more. Called with mu.
func (v *Volume) settle(synced []*segment) {
	for _, s := range synced[:max(len(synced)-1, 0)] { // the last one goes on growing
		s.synced = true
	}
}

// mark notes in the journal how much of it is synced, unless it says so already.
// Without that, damage to what was flushed just before a kill would look like a
// tail. Called with mu.
func (v *Volume) mark() {
	if v.told >= v.durable {
		return
	}
	if err := v.append(entry{kind: kindMark}, nil, 0); err != nil {
		v.cfg.Log.Debug("no mark after a flush", "dir", v.cfg.Dir, "err", err)
	}
}

func (v *Volume) sync(due []*segment, newNames bool) error {
	for _, s := range due {
		if err := dataSync(s.file); err != nil {
			return err
		}
	}
	if newNames {
		if err := durable.SyncDir(v.cfg.Dir); err != nil {
			return err
		}
	}
	return nil
}

// Zero implements blockdev.Device. The zeros take one entry however long they
// are.
func (v *Volume) Zero(ctx context.Context, off, length int64, keep, fua bool) error {
	kind := byte(kindZero)
	if keep {
		kind = kindKeep
	}
	v.waiting.Add(1)
	v.mu.Lock()
	v.waiting.Add(-1)
	var err error
	for length > 0 && err == nil {
		n := min(length, zeroMax*sectorSize)
		err = v.append(entry{kind: kind, start: uint64(off / sectorSize), sectors: uint32(n / sectorSize)}, nil, 0)
		off, length = off+n, length-n
	}
	v.mu.Unlock()
	if err != nil {
		return fmt.Errorf("zero: %w", err)
	}
	if fua {
		return v.Flush(ctx)
	}
	return nil
}
