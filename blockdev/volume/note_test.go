package volume

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestMissingSegments takes away segments that were flushed: in the middle, at the
// end, all. What is left is never taken for the whole.
func TestMissingSegments(t *testing.T) {
	const size = 3 * segmentMax
	dir := filepath.Join(t.TempDir(), "volume")
	must(t, Create(dir, Meta{ID: [16]byte{1}, Size: size, Epoch: 1}))
	v, err := Open(Config{Dir: dir})
	must(t, err)
	block := bytes.Repeat([]byte{1}, writeMax)
	for off := int64(0); len(v.segments) < 3; off += writeMax {
		must(t, v.WriteAt(t.Context(), block, off, false))
	}
	must(t, v.Flush(t.Context()))
	must(t, v.Close())
	// Rot in the first one is no tail, though a loss of power took the mark that
	// says what is durable.
	last := filepath.Join(dir, segmentName(3))
	whole, err := os.ReadFile(last)
	must(t, err)
	must(t, os.WriteFile(last, whole[:len(whole)-entryHeader], 0o600))
	first := filepath.Join(dir, segmentName(1))
	good, err := os.ReadFile(first)
	must(t, err)
	rotten := bytes.Clone(good)
	rotten[len(rotten)/2] ^= 1
	must(t, os.WriteFile(first, rotten, 0o600))
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("rot in the first segment: %v", err)
	}
	must(t, os.WriteFile(first, good, 0o600))
	must(t, os.WriteFile(last, whole, 0o600))
	if left, err := filepath.Glob(filepath.Join(dir, "*.seg")); err != nil || len(left) != 3 {
		t.Errorf("of three segments %q are left, %v", left, err)
	}
	for _, gone := range [][]uint64{{1}, {2}, {3}, {2, 3}, {1, 2, 3}} {
		for _, number := range gone {
			name := filepath.Join(dir, segmentName(number))
			must(t, os.Rename(name, name+".gone"))
		}
		var lost *CorruptError
		if _, err := Open(Config{Dir: dir}); !errors.As(err, &lost) || !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("without segments %v: %v, want a CorruptError", gone, err)
		}
		v, err := Open(Config{Dir: dir, ReadOnly: true})
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
	v, err = Open(Config{Dir: dir})
	must(t, err)
	must(t, v.Close())
}

// TestSegmentThatWasNeverFlushed takes away the only segment of a volume that has
// flushed nothing: nobody was promised it.
func TestSegmentThatWasNeverFlushed(t *testing.T) {
	dir := create(t)
	v := open(t, dir, newImage(sourceSize))
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, unit), 0, false))
	must(t, os.Remove(filepath.Join(dir, segmentName(1))))
	for _, s := range v.segments { // as a kill does, without a last sync
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
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, unit), 0, false))
	must(t, v.Flush(t.Context()))
	path := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(path)
	must(t, err)
	must(t, v.Close())
	head := bytes.Clone(whole[:segmentHeader])
	head[9] ^= 1
	must(t, os.WriteFile(path, head, 0o600))
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("a damaged head, and nothing behind it: %v", err)
	}
}
