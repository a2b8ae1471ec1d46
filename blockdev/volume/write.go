package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"syscall"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// batchMax is how many changes go in one write: each has two parts.
const batchMax = journal.VectorMax / 2

// WriteAt implements blockdev.Device.
func (v *Volume) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := v.admit(ctx, int64(len(p))); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	for at := 0; at < len(p); {
		part := p[at:min(len(p), at+journal.WriteMax)]
		c := v.lend(journal.DataEntry(off+int64(at), len(part)), part, false)
		journal.SumUnits(c.head[extents.EntryHeader:], part)
		err := v.append(c)
		v.give(c)
		if err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", len(part), off+int64(at), err)
		}
		at += len(part)
	}
	if fua {
		return v.Flush(ctx)
	}
	return nil
}

// TryWriteBatch implements blockdev.BatchWriter, with one write of the file. A new segment is left to WriteAt.
func (v *Volume) TryWriteBatch(ws []blockdev.Write) int {
	var bytes int64
	for _, w := range ws[:min(len(ws), batchMax)] {
		bytes += int64(len(w.Data))
	}
	if v.turns.busy() || !v.admitted(bytes) { // one that waits is not overtaken
		return 0
	}
	var lent [batchMax]*change
	n := 0
	defer func() {
		for _, c := range lent[:n] {
			v.give(c)
		}
	}()
	for ; n < min(len(ws), batchMax) && len(ws[n].Data) <= journal.WriteMax; n++ {
		lent[n] = v.lend(journal.DataEntry(ws[n].Offset, len(ws[n].Data)), ws[n].Data, false)
		journal.SumUnits(lent[n].head[extents.EntryHeader:], lent[n].data)
	}
	return v.tryCommit(lent[:n])
}

// tryCommit appends those changes that the open segment has room for, if that needs no wait, and returns how many.
func (v *Volume) tryCommit(lent []*change) int {
	if !v.turns.try() {
		return 0
	}
	defer v.turns.pass()
	if v.full() {
		return 0
	}
	v.batch = v.batch[:0]
	for room := v.cfg.SegmentSize - v.tail.size; len(v.batch) < len(lent) && room > 0; room -= lent[len(v.batch)-1].bytes() {
		v.batch = append(v.batch, lent[len(v.batch)])
	}
	done, _ := v.commit(v.batch)
	return done
}

// TryWriteFrom implements blockdev.Device: an append to a file needs no wait but the kernel's own. A new segment is left to WriteAt.
func (v *Volume) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	if n > journal.WriteMax || v.turns.busy() || !v.admitted(int64(n)) { // one that waits is not overtaken
		return false
	}
	c := v.lend(journal.DataEntry(off, n), nil, true)
	defer v.give(c)
	if read, _ := data.ReadAt(c.data, 0); read < n {
		return false
	}
	journal.SumUnits(c.head[extents.EntryHeader:], c.data)
	return v.tryCommit([]*change{c}) == 1
}

// append writes a change, with those that wait behind it, to the open segment and lays
// it over the map. A full disk leaves the journal as it was.
func (v *Volume) append(c *change) error {
	if !v.turns.take(c) {
		if err := <-c.done; err != errTurn { //nolint:errorlint // it is no error, and never wrapped
			return err
		}
	}
	defer v.turns.pass()
	if err := v.roll(); err != nil {
		return err
	}
	v.batch = v.turns.join(append(v.batch[:0], c), v.cfg.SegmentSize-v.tail.size-c.bytes())
	done, err := v.commit(v.batch)
	for i, other := range v.batch[1:] {
		if i+1 < done {
			other.done <- nil
		} else {
			other.done <- err
		}
	}
	if done > 0 {
		return nil
	}
	return err
}

// writable says why the volume takes no change.
func (v *Volume) writable() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	switch {
	case v.closed:
		return content.ErrClosed
	case v.cfg.ReadOnly:
		return content.ErrReadOnly
	}
	return v.failed
}

// commit appends changes to the open segment, and returns how many it has; err is what keeps the others from it. Called with the turn.
func (v *Volume) commit(batch []*change) (done int, err error) {
	if err := v.writable(); err != nil {
		return 0, err
	}
	v.mu.RLock()
	synced := v.durable
	v.mu.RUnlock()
	s := v.tail
	v.vector = v.vector[:0]
	for i, c := range batch {
		c.Entry.Seq, c.Entry.Durable = v.seq+uint64(i)+1, synced
		c.Seal(s.seed, c.head)
		if v.vector = append(v.vector, c.head); len(c.data) > 0 {
			v.vector = append(v.vector, c.data)
		}
	}
	v.cfg.Step("append")
	n, err := journal.WriteVector(s.file, v.vector, s.size)
	end := s.size
	for ; done < len(batch) && end+batch[done].bytes() <= s.size+n; done++ {
		end += batch[done].bytes()
	}
	if err != nil {
		v.cutBack(s, end)
		err = v.refused(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range batch[:done] {
		v.apply(s.slot, s.size, c.Entry, c.head[extents.EntryHeader:])
		v.seq, v.told = c.Entry.Seq, c.Entry.Durable
		s.size, s.last, s.entries = s.size+c.bytes(), v.seq, s.entries+1
		s.body = s.size
		if c.Kind != journal.KindMark {
			v.written = v.seq
		}
	}
	if done > 0 && err == nil && v.noSpace {
		v.noSpace = false
		v.cfg.Log.Info("there is room for a volume's writes again", "dir", v.cfg.Dir)
	}
	return done, err
}

// cutBack removes what is left behind the end of a segment, of a failed write or of what its file was before.
func (v *Volume) cutBack(s *segment, end int64) {
	err := s.file.Truncate(end)
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.room = 0; err != nil {
		v.failed = fmt.Errorf("the journal has more than its entries and can't be cut back: %w", err)
	}
}

// refused says what a failed write means to a guest, and of a full disk, once, to the log.
func (v *Volume) refused(err error) error {
	if !durable.IsFull(err) {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.noSpace {
		v.noSpace = true
		v.cfg.Log.Error("the disk is full, and a volume's writes fail until there is room", "dir", v.cfg.Dir, "err", err)
	}
	return fmt.Errorf("%w: %w", content.ErrNoSpace, err)
}

// apply lays an entry of the segment in a slot over the map; sums follow its head.
func (v *Volume) apply(slot uint32, off int64, e journal.Entry, sums []byte) {
	if e.Kind != journal.KindMark && e.Sectors > 0 {
		v.open.mem.Put(e.Extent(slot, off, sums))
	}
}

// full reports whether the next entry needs a new segment. Called with the turn.
func (v *Volume) full() bool {
	return v.tail == nil || v.tail.size >= v.cfg.SegmentSize || v.tail.entries >= entriesMax
}

// roll opens a new segment when there is none or the last one is full, whose table it
// writes. What is full by now is synced beside. Called with the turn.
func (v *Volume) roll() error {
	if !v.full() {
		return nil
	}
	if err := v.writable(); err != nil {
		return err
	}
	full := v.tail != nil
	v.endTail()
	h := journal.Header{Volume: v.cfg.ID, Epoch: v.cfg.Epoch, Number: v.number + 1, After: content.Position{Number: v.number, Seq: v.seq}}
	s, err := v.createSegment(h)
	if err != nil {
		return v.refused(err)
	}
	v.mu.Lock()
	v.add(s)
	v.tail, v.newNames = s, true
	v.weigh()
	v.mu.Unlock()
	if full {
		v.tendSoon()
	}
	return nil
}

// endTail closes the open segment. Called with the turn.
func (v *Volume) endTail() {
	s := v.tail
	if s == nil || s.empty() {
		return
	}
	size := s.size
	t := journal.Table{Seq: s.last, Extents: v.open.mem.Of(s.slot, journal.TableMax)}
	if len(t.Extents) <= journal.TableMax {
		b := t.Encode(s.seed, s.size)
		if _, err := s.file.WriteAt(b, s.size); err == nil {
			size += int64(len(b))
		} else { // the next start reads all of it
			v.cutBack(s, s.size)
		}
	}
	if v.cfg.Step("table"); s.room > size {
		v.cutBack(s, size)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s.size, s.sealed, v.tail = size, true, nil
}

// add gives a segment a slot and makes it the last one. Called with mu.
func (v *Volume) add(s *segment) {
	s.slot = v.place(s)
	v.chain, v.number = append(v.chain, s), s.Number
}

// place gives a segment a slot: all that is counted by slot is as long as there were slots at once. Called with mu.
func (v *Volume) place(s *segment) (slot uint32) {
	if n := len(v.vacant); n > 0 {
		slot, v.vacant = v.vacant[n-1], v.vacant[:n-1]
		v.slots[slot] = s
		return slot
	}
	v.slots = append(v.slots, s)
	return uint32(len(v.slots) - 1)
}

// vacate gives back the slots of segments into which nobody looks any more.
func (v *Volume) vacate(segments ...*segment) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range segments {
		v.slots[s.slot], v.vacant = nil, append(v.vacant, s.slot)
	}
}

// fail stops the volume: what a failed sync has dropped is not known, and trying again would report success for it. Called with mu.
func (v *Volume) fail(err error) error {
	v.failed = fmt.Errorf("the journal could not be synced, and the volume has stopped: %w", err)
	v.cfg.Log.Error("volume stopped", "dir", v.cfg.Dir, "err", err)
	return v.failed
}

// Flush implements blockdev.Device. Calls at once share a sync, and a call of Config.Persist.
func (v *Volume) Flush(ctx context.Context) error {
	v.mu.RLock()
	target := v.written
	v.mu.RUnlock()
	if err := v.flush(target); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	if v.cfg.Persist == nil {
		return nil
	}
	v.persisting.Lock()
	defer v.persisting.Unlock()
	if doubts := v.doubts.Load(); v.trusted != doubts {
		v.persisted, v.trusted = 0, doubts
	}
	if v.persisted >= target {
		return nil
	}
	v.mu.RLock()
	upTo := content.Position{Seq: v.durable}
	for _, s := range v.chain {
		if s.After.Seq < upTo.Seq {
			upTo.Number = s.Number
		}
	}
	v.mu.RUnlock()
	if err := v.cfg.Persist(ctx, upTo); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	v.persisted = upTo.Seq
	return nil
}

// Distrust has each flush that begins later ask Config.Persist anew, whatever was flushed before: it stands for another place by now.
func (v *Volume) Distrust() { v.doubts.Add(1) }

// everything is the target of a flush that has all in its files durable, tables too.
const everything = math.MaxUint64

// flush makes the entries up to target durable here.
func (v *Volume) flush(target uint64) error {
	v.syncing.Lock()
	defer v.syncing.Unlock()
	v.mu.RLock()
	due, done := v.due(), v.durable >= target
	v.mu.RUnlock()
	switch {
	case due.err != nil:
		return due.err
	case done || len(due.segments) == 0:
		return nil
	}
	return v.carry(due)
}

// due is what a sync has to make durable.
type due struct {
	segments []*segment
	sealed   []*segment // of those
	newNames bool
	end      journal.Note
	last     uint64 // seq of the last entry in it that is not a mark
	err      error  // why nothing can be synced
}

// unsynced is where in the chain those begin that are to be synced. Called with mu.
func (v *Volume) unsynced() int {
	first := len(v.chain)
	for first > 0 && !v.chain[first-1].synced {
		first--
	}
	return first
}

// due returns what has to be synced by now. Called with mu.
func (v *Volume) due() due {
	switch {
	case v.closed:
		return due{err: content.ErrClosed}
	case v.failed != nil:
		return due{err: v.failed}
	}
	d := due{segments: slices.Clone(v.chain[v.unsynced():]), newNames: v.newNames, end: v.end(), last: v.written}
	if d.sealed = d.segments; v.tail != nil {
		d.sealed = d.segments[:len(d.segments)-1]
	}
	return d
}

// carry makes durable what is due. Called with syncing.
func (v *Volume) carry(d due) error {
	if err := v.stopped(v.sync(d.segments, d.newNames)); err != nil {
		return err
	}
	v.note(d.end)
	v.carried(d)
	v.cfg.Advanced()
	v.take()
	defer v.turns.pass()
	v.mark()
	return nil
}

// stopped says what a failed sync means: nothing for none. A folder that could not even be
// opened was not synced, and so no sync of it has failed.
func (v *Volume) stopped(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("this process has too many files open; that is tried again: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.fail(err)
}

// carried says that what was due is durable now.
func (v *Volume) carried(d due) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.durable = max(v.durable, d.last)
	v.settle(d)
	v.newNames = v.newNames && v.number != d.end.Number
}

// settle marks segments as synced that don't grow any more, and where the other one ends. Called with mu.
func (v *Volume) settle(d due) {
	for _, s := range d.sealed {
		s.synced = true
	}
	if n := len(d.segments); n > len(d.sealed) && d.segments[n-1].Number == d.end.Number {
		s := d.segments[n-1]
		s.flushed = append(s.flushed, place{d.end.Seq, d.end.Length})
	}
}

// mark notes in the journal how much of it is synced, unless it says so already.
// Without that, damage to what was flushed just before a kill would look like a
// tail. It makes no segment. Called with the turn.
func (v *Volume) mark() {
	v.mu.RLock()
	needless := v.told >= v.durable || v.full()
	v.mu.RUnlock()
	if needless {
		return
	}
	c := v.lend(journal.Entry{Kind: journal.KindMark}, nil, false)
	defer v.give(c)
	if _, err := v.commit([]*change{c}); err != nil {
		v.cfg.Log.Debug("no mark after a flush", "dir", v.cfg.Dir, "err", err)
	}
}

func (v *Volume) sync(due []*segment, newNames bool) error {
	for _, s := range due {
		if err := journal.DataSync(s.file); err != nil {
			return err
		}
	}
	if !newNames {
		return nil
	}
	return durable.SyncDir(v.cfg.Dir)
}

// Zero implements blockdev.Device. The zeros take one entry however long they are.
func (v *Volume) Zero(ctx context.Context, off, length int64, keep, fua bool) error {
	kind := byte(journal.KindZero)
	if keep {
		kind = journal.KindKeep
	}
	for length > 0 {
		n := min(length, zeroMax*extents.SectorSize)
		c := v.lend(journal.Entry{Kind: kind, Start: uint64(off / extents.SectorSize), Sectors: uint32(n / extents.SectorSize)}, nil, false)
		err := v.append(c)
		v.give(c)
		if err != nil {
			return fmt.Errorf("zero: %w", err)
		}
		off, length = off+n, length-n
	}
	if fua {
		return v.Flush(ctx)
	}
	return nil
}

// note writes down that the segments up to s are durable, that one up to length. It
// may fail on a full disk, and is tried again by the next sync: what was flushed is
// flushed all the same. Called with syncing, or before the volume is anybody's.
func (v *Volume) note(n journal.Note) {
	if v.cfg.ReadOnly || n.Number == 0 {
		return
	}
	if err := v.notes.Write(v.cfg.Dir, n); err != nil {
		v.cfg.Log.Debug("no note of the journal's end", "dir", v.cfg.Dir, "err", err)
	}
}

// end is the note of all that the journal has. It does not speak of an open segment without
// an entry, which may yet go. Called with mu, or before the volume is anybody's.
func (v *Volume) end() journal.Note {
	n := len(v.chain)
	if n > 0 && v.chain[n-1].empty() {
		n--
	}
	if n == 0 {
		return journal.Note{}
	}
	s := v.chain[n-1]
	return journal.Note{Number: s.Number, Length: s.size, Seq: v.seq}
}
