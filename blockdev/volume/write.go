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
	err := v.write(from(p), len(p), off)
	v.mu.Unlock()
	if err == nil && fua {
		err = v.Flush(ctx)
	}
	return err
}

// TryWriteAt implements blockdev.Prompt: an append to a file needs no wait but
// the kernel's own. A new segment is left to WriteAt.
func (v *Volume) TryWriteAt(p []byte, off int64) bool { return v.tryWrite(from(p), len(p), off) }

// TryWriteFrom implements blockdev.Direct.
func (v *Volume) TryWriteFrom(r io.ReaderAt, n int, off int64) bool {
	return v.tryWrite(func(dst []byte, at int) error {
		got, err := r.ReadAt(dst, int64(at))
		if got == len(dst) {
			err = nil
		}
		return err
	}, n, off)
}

func (v *Volume) tryWrite(data payload, n int, off int64) bool {
	if v.waiting.Load() > 0 || !v.mu.TryLock() { // a write that waits is not overtaken
		return false
	}
	defer v.mu.Unlock()
	last := len(v.segments) - 1
	if last < 0 || v.segments[last].size >= segmentMax || n > writeMax {
		return false
	}
	return v.write(data, n, off) == nil
}

// payload fills dst with the data of a write from its byte at on. A write takes each
// byte from it once.
type payload func(dst []byte, at int) error

func from(p []byte) payload {
	return func(dst []byte, at int) error {
		copy(dst, p[at:])
		return nil
	}
}

// write appends one entry for each writeMax of data. Called with mu.
func (v *Volume) write(data payload, n int, off int64) error {
	for at := 0; at < n; {
		part := min(n-at, writeMax)
		e := entry{kind: kindData, start: uint64((off + int64(at)) / sectorSize), sectors: uint32(part / sectorSize)}
		if err := v.append(e, data, at); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", part, off+int64(at), err)
		}
		at += part
	}
	return nil
}

// append writes an entry, whose data begins at byte at of data, to the open segment
// and lays it over the map. A full disk leaves the journal as it was. Called with mu.
func (v *Volume) append(e entry, data payload, at int) error {
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
	index := len(v.segments) - 1
	s := v.segments[index]
	b := v.buffers.Get(int(e.size()))
	defer v.buffers.Put(b)
	if e.kind == kindData {
		if err := data((*b)[e.dataOffset():], at); err != nil {
			return err
		}
	}
	e.seal(*b)
	if _, err := s.file.WriteAt(*b, s.size); err != nil {
		if err := s.file.Truncate(s.size); err != nil {
			v.failed = fmt.Errorf("the journal took a part of an entry and can't be cut back: %w", err)
		}
		return spaceError(err)
	}
	v.seq++
	v.told = e.durable
	if e.kind != kindMark {
		v.written = v.seq
	}
	v.apply(uint32(index), s.size, e, (*b)[entryHeader:])
	s.size += e.size()
	return nil
}

// apply lays an entry over the map; sums follow its head.
func (v *Volume) apply(index uint32, off int64, e entry, sums []byte) {
	x := extent{start: e.start, n: e.sectors, seg: index, data: off + e.dataOffset(), entry: e.sectors}
	switch {
	case e.kind == kindMark || e.sectors == 0:
		return
	case e.kind == kindZero:
		x.seg, x.data = segZero, 0
	case e.units() == 1:
		x.crc = binary.LittleEndian.Uint32(sums)
	}
	v.extents.put(x)
}

// lose marks the range of a lost entry, so that reading it fails.
func (v *Volume) lose(e entry) { v.extents.put(extent{start: e.start, n: e.sectors, seg: segBad}) }

// roll opens a new segment when there is none or the last one is full. Nothing is
// synced here: a Flush syncs all that was written since the last one. Called with
// mu.
func (v *Volume) roll() error {
	n := len(v.segments)
	if n > 0 && v.segments[n-1].size < segmentMax {
		return nil
	}
	number := uint64(1)
	if n > 0 {
		number = v.segments[n-1].number + 1
	}
	s, err := createSegment(v.cfg.Dir, v.meta.ID, v.meta.Epoch, number, v.seq+1)
	if err != nil {
		return spaceError(err)
	}
	v.segments, v.newNames = append(v.segments, s), true
	return nil
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
	v.mu.Lock()
	failed, closed, last, end := v.failed, v.closed, v.written, v.end()
	due := slices.Clone(v.segments[min(v.synced, len(v.segments)):])
	newNames, done := v.newNames, v.durable >= target
	v.mu.Unlock()
	switch {
	case closed:
		return fmt.Errorf("flush: %w", content.ErrClosed)
	case failed != nil:
		return fmt.Errorf("flush: %w", failed)
	case done || len(due) == 0:
		return nil
	}
	err := v.sync(due, newNames)
	if err == nil {
		v.note(end)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		// The folder could not even be opened, so no sync of it has failed.
		return fmt.Errorf("flush: this process has too many files open; the next flush tries again: %w", err)
	case err != nil:
		return fmt.Errorf("flush: %w", v.fail(err))
	}
	v.durable = max(v.durable, last)
	v.synced += len(due) - 1 // the last one goes on growing
	v.newNames = v.newNames && v.segments[len(v.segments)-1] != due[len(due)-1]
	v.mark()
	return nil
}

// mark notes in the journal how much of it is synced, unless it says so already.
// Without that, damage to what was flushed just before a kill would look like a
// tail. Called with mu.
func (v *Volume) mark() {
	if v.told >= v.durable || v.closed {
		return
	}
	if err := v.append(entry{kind: kindMark}, nil, 0); err != nil {
		v.cfg.Log.Debug("no mark after a flush", "dir", v.cfg.Dir, "err", err)
	}
}

// sync makes segments and their names durable.
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

// Discard implements blockdev.Trimmer: the range reads as zeros from now on.
func (v *Volume) Discard(ctx context.Context, off, length int64, fua bool) error {
	return v.Zero(ctx, off, length, false, fua)
}

// Zero implements blockdev.Trimmer. The zeros take one entry however long they
// are.
func (v *Volume) Zero(ctx context.Context, off, length int64, _, fua bool) error {
	v.waiting.Add(1)
	v.mu.Lock()
	v.waiting.Add(-1)
	var err error
	for length > 0 && err == nil {
		n := min(length, zeroMax*sectorSize)
		err = v.append(entry{kind: kindZero, start: uint64(off / sectorSize), sectors: uint32(n / sectorSize)}, nil, 0)
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

// spaceError says what a failed write means to a guest.
func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", content.ErrNoSpace, err)
	}
	return err
}
