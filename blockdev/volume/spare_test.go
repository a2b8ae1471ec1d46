package volume

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// overwrite rewrites the front of the disk until a journal of small segments has begun n
// more of them, and returns what is there then.
func overwrite(t *testing.T, v *Volume, n uint64) []byte {
	t.Helper()
	want := make([]byte, 4*extents.Unit)
	for first, i := v.End().Number, 0; v.End().Number < first+n; i++ {
		p := bytes.Repeat([]byte{byte(i + 1)}, extents.Unit)
		off := int64(i%4) * extents.Unit
		must(t, v.WriteAt(t.Context(), p, off, i%8 == 0))
		copy(want[off:], p)
		v.work.Wait()
	}
	return want
}

// cut has a root take over all that the journal has, as the last step of a fold.
func cut(t *testing.T, v *Volume, cfg *Config) {
	t.Helper()
	p, err := v.Seal(t.Context())
	must(t, err)
	cfg.Base = p
	must(t, v.Rebase(nil, 0, testChunk, p))
	v.Release(p)
	v.work.Wait()
}

func spareFiles(t *testing.T, dir string) (out []string) {
	t.Helper()
	for name := range files(t, dir) {
		if strings.HasPrefix(name, journal.SparePrefix) {
			out = append(out, name)
		}
	}
	return out
}

// TestSegmentFilesAreUsedAgain rewrites a part of the disk again and again: new segments are
// in files that others have had, whole as they were until nobody reads them, and never in
// one that a fork has too. The disk that is short gets what is kept back, and so does the
// end of the volume.
func TestSegmentFilesAreUsedAgain(t *testing.T) {
	cfg := smallSegments(create(t), nil)
	var short atomic.Bool
	cfg.Free = func() float64 {
		if short.Load() {
			return compactBelow - 0.01
		}
		return 1
	}
	v, err := Open(cfg)
	must(t, err)
	again := 0
	v.cfg.Step = func(name string) { // but one goroutine writes
		if name == "reused" {
			again++
		}
	}
	for range 10 {
		overwrite(t, v, 4)
		cut(t, v, &cfg)
	}
	if again < 5 {
		t.Errorf("of 40 segments %d have a file of another one", again)
	}

	fork := filepath.Join(t.TempDir(), "fork")
	overwrite(t, v, 2)
	is := v.Sealed()[0].Path
	must(t, os.Link(is, fork))
	whole, err := os.ReadFile(fork)
	must(t, err)
	cut(t, v, &cfg)
	overwrite(t, v, 10)
	if b, err := os.ReadFile(fork); err != nil || !bytes.Equal(b, whole) {
		t.Errorf("%s was used again, and a fork has it: %v", is, err)
	}

	cut(t, v, &cfg)
	if left := spareFiles(t, cfg.Dir); len(left) == 0 || v.spares.Bytes() > sparesMax*cfg.SegmentSize {
		t.Errorf("kept are %q, of %d bytes", left, v.spares.Bytes())
	}
	short.Store(true)
	v.Yield()
	if left := spareFiles(t, cfg.Dir); len(left) > 0 || v.spares.Bytes() != 0 {
		t.Errorf("on a disk that is short there are %q, of %d bytes", left, v.spares.Bytes())
	}
	overwrite(t, v, 2)
	cut(t, v, &cfg)
	if left := spareFiles(t, cfg.Dir); len(left) > 0 {
		t.Errorf("a disk that is short gets %q", left)
	}
	short.Store(false)
	overwrite(t, v, 3)
	cut(t, v, &cfg)
	want := overwrite(t, v, 1)
	crashed := killed(t, cfg.Dir)
	must(t, v.Close())
	if left := spareFiles(t, cfg.Dir); len(left) > 0 {
		t.Errorf("a closed volume leaves %q", left)
	}
	for _, dir := range []string{cfg.Dir, crashed} {
		cfg.Dir = dir
		v, err = Open(cfg)
		must(t, err)
		expect(t, v, append(want, make([]byte, testSize-len(want))...), 0, testSize)
		if left := spareFiles(t, dir); len(left) > 0 {
			t.Errorf("a start leaves %q", left)
		}
		must(t, v.Close())
	}
}

// TestASpareThatIsNoUse has the file of a spare gone when its turn comes: the segment gets a new
// one, and no guest hears of it.
func TestASpareThatIsNoUse(t *testing.T) {
	cfg := smallSegments(create(t), nil)
	v, err := Open(cfg)
	must(t, err)
	overwrite(t, v, 4)
	cut(t, v, &cfg)
	left := spareFiles(t, cfg.Dir)
	for _, name := range left {
		must(t, os.Remove(filepath.Join(cfg.Dir, name)))
	}
	want := overwrite(t, v, 2)
	if len(left) == 0 || v.spares.Bytes() > sparesMax*cfg.SegmentSize {
		t.Errorf("kept were %q, and are %d bytes", left, v.spares.Bytes())
	}
	expect(t, v, want, 0, int64(len(want)))
	must(t, v.Close())
}
