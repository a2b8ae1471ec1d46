package volume

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// TestMissingSegments takes away segments that were flushed: in the middle, at the
// end, all. What is left is never taken for the whole.
func TestMissingSegments(t *testing.T) {
	const size = 3 * segmentMax
	dir := create(t)
	cfg := config(dir)
	cfg.Size = size
	v, err := Open(cfg)
	must(t, err)
	block := bytes.Repeat([]byte{1}, journal.WriteMax)
	for off := int64(0); len(v.chain) < 3; off += journal.WriteMax {
		must(t, v.WriteAt(t.Context(), block, off, false))
	}
	must(t, v.Flush(t.Context()))
	must(t, v.Close())
	if left, err := filepath.Glob(filepath.Join(dir, "*.seg")); err != nil || len(left) != 3 {
		t.Errorf("of three segments %q are left, %v", left, err)
	}
	for _, gone := range [][]uint64{{1}, {2}, {3}, {2, 3}, {1, 2, 3}} {
		for _, number := range gone {
			name := filepath.Join(dir, segmentName(number))
			must(t, os.Rename(name, name+".gone"))
		}
		var lost *CorruptError
		if _, err := Open(cfg); !errors.As(err, &lost) || !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("without segments %v: %v, want a CorruptError", gone, err)
		}
		v, err := Open(readOnly(cfg))
		if err != nil {
			t.Errorf("without segments %v, read-only: %v", gone, err)
		} else {
			must(t, v.Close())
		}
		for _, number := range gone {
			name := filepath.Join(dir, segmentName(number))
			must(t, os.Rename(name+".gone", name))
		}
	}
	v, err = Open(cfg)
	must(t, err)
	must(t, v.Close())
}

// TestSegmentThatWasNeverFlushed takes away the only segment of a volume that has
// flushed nothing: nobody was promised it.
func TestSegmentThatWasNeverFlushed(t *testing.T) {
	dir := create(t)
	v := open(t, dir, newImage(sourceSize))
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, extents.Unit), 0, false))
	must(t, os.Remove(filepath.Join(dir, segmentName(1))))
	for _, s := range v.chain { // as a kill does, without a last sync
		must(t, s.file.Close())
	}
	must(t, v.lock.Close())
	must(t, open(t, dir, newImage(sourceSize)).Close())
}

// TestHeadOfAFlushedSegment damages the head of a segment whose entries say nothing
// of what is durable.
func TestHeadOfAFlushedSegment(t *testing.T) {
	dir := create(t)
	v := open(t, dir, newImage(sourceSize))
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, extents.Unit), 0, false))
	must(t, v.Flush(t.Context()))
	path := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(path)
	must(t, err)
	must(t, v.Close())
	head := bytes.Clone(whole[:journal.HeaderSize])
	head[9] ^= 1
	must(t, os.WriteFile(path, head, 0o600))
	if _, err := Open(config(dir)); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("a damaged head, and nothing behind it: %v", err)
	}
}

// TestCutEndIsNoEnd cuts the last segment of a journal, after a clean stop and after a
// kill, at entries' ends and between them: what was flushed is missed, and nothing is
// cut away.
func TestCutEndIsNoEnd(t *testing.T) {
	for _, clean := range []bool{true, false} {
		dir := create(t)
		v := open(t, dir, newImage(sourceSize))
		for i := range int64(20) {
			must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i)}, extents.Unit), i*extents.Unit, false))
		}
		must(t, v.Flush(t.Context()))
		flushed := v.chain[0].size - extents.EntryHeader // without the mark that the flush leaves
		if clean {
			must(t, v.Close())
		} else {
			kill(t, v)
		}
		path := filepath.Join(dir, segmentName(1))
		whole, err := os.ReadFile(path)
		must(t, err)
		entrySize := (flushed - journal.HeaderSize) / 20
		cuts := []int64{0, journal.HeaderSize, flushed / 2, flushed - 1, flushed - entrySize, flushed - 10*entrySize}
		for _, cut := range cuts {
			must(t, os.WriteFile(path, whole[:cut], 0o600))
			var lost *CorruptError
			if _, err := Open(config(dir)); !errors.As(err, &lost) {
				t.Errorf("clean %v, cut to %d of %d: %v, want a CorruptError", clean, cut, len(whole), err)
			}
			if left, err := os.ReadFile(path); err != nil || int64(len(left)) != cut {
				t.Errorf("cut to %d: then it had %d bytes, %v", cut, len(left), err)
			}
		}
		must(t, os.WriteFile(path, whole, 0o600))
		v = open(t, dir, newImage(sourceSize))
		for i := range int64(20) {
			expect(t, v, bytes.Repeat([]byte{byte(i)}, int((i+1)*extents.Unit)), i*extents.Unit, extents.Unit)
		}
		must(t, v.Close())
	}
}

// TestTornNote tears the note at each byte of either slot: the other one holds.
func TestTornNote(t *testing.T) {
	dir := create(t)
	v := open(t, dir, newImage(sourceSize))
	for i := range int64(4) {
		must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), i*extents.Unit, true))
	}
	must(t, v.Close())
	path := filepath.Join(dir, journal.NoteName)
	whole, err := os.ReadFile(path)
	must(t, err)
	for _, slot := range []int{0, journal.NoteSlot} {
		for at := range journal.NoteSize {
			b := bytes.Clone(whole)
			b[slot+at] ^= 0x80
			must(t, os.WriteFile(path, b, 0o600))
			if n, _, err := journal.ReadNote(dir, testID()); err != nil || n.Number != 1 {
				t.Errorf("byte %d: %+v, %v", slot+at, n, err)
			}
		}
	}
	for _, b := range [][]byte{nil, make([]byte, journal.NoteSlot+journal.NoteSize), whole[1:]} {
		must(t, os.WriteFile(path, b, 0o600))
		if _, err := Open(config(dir)); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("a note of %d bytes that says nothing: %v", len(b), err)
		}
	}
}

// TestTornNoteOfAStart: the first note of a start is not written over the last one before.
func TestTornNoteOfAStart(t *testing.T) {
	dir := create(t)
	for i := range int64(3) {
		v := open(t, dir, newImage(sourceSize))
		b, err := os.ReadFile(filepath.Join(dir, journal.NoteName))
		must(t, err)
		if i > 0 {
			clear(b[v.notes.Turn%2*journal.NoteSlot:][:journal.NoteSize]) // what this start has written
		}
		must(t, os.WriteFile(filepath.Join(dir, journal.NoteName), b, 0o600))
		if n, _, err := journal.ReadNote(dir, testID()); err != nil || i > 0 && n.Number != 1 {
			t.Errorf("start %d: %+v, %v", i, n, err)
		}
		must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, true))
		kill(t, v)
	}
}

// kill leaves the files as the death of the process does.
func kill(t *testing.T, v *Volume) {
	t.Helper()
	for _, s := range v.chain {
		must(t, s.file.Close())
	}
	must(t, v.notes.File.Close())
	must(t, v.lock.Close())
}

// TestAStartBelievesTheDiskAlone: what no note calls durable is written again, in place, before
// the first sync of a start: an earlier one may have failed, and the kernel takes what it has in
// memory for what is on the disk. What is noted stays as it is.
func TestAStartBelievesTheDiskAlone(t *testing.T) {
	for _, noted := range []bool{true, false} {
		dir := create(t)
		v := open(t, dir, newImage(sourceSize))
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, extents.Unit), 0, true))
		if noted {
			must(t, v.Close())
		} else {
			must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, 3*extents.Unit), 0, false))
			kill(t, v)
		}
		path, long := filepath.Join(dir, segmentName(1)), time.Now().Add(-time.Hour).Truncate(time.Second)
		whole, err := os.ReadFile(path)
		must(t, err)
		must(t, os.Chtimes(path, long, long))
		v = open(t, dir, newImage(sourceSize))
		info, err := os.Stat(path)
		must(t, err)
		if again := !info.ModTime().Equal(long); again == noted {
			t.Errorf("noted %t, and written again: %t", noted, again)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, whole) {
			t.Errorf("other bytes are there, %v", err)
		}
		must(t, v.Close())
	}
}
