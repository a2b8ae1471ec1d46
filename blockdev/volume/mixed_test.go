package volume

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// files returns what a volume's folder holds, but for its lock.
func files(t rapidT, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	found, err := os.ReadDir(dir)
	must(t, err)
	for _, f := range found {
		if f.Name() != "lock" {
			b, err := os.ReadFile(filepath.Join(dir, f.Name()))
			must(t, err)
			out[f.Name()] = string(b)
		}
	}
	return out
}

// put makes a folder hold just these files.
func put(t rapidT, dir string, all map[string]string) {
	t.Helper()
	must(t, errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)))
	for name, b := range all {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600))
	}
}

// rewritten makes a journal of which many segments have gone, and others live on among
// them, and returns its folder and how the disk reads.
func rewritten(t *testing.T) (dir string, want []byte) {
	t.Helper()
	dir = create(t)
	v, err := Open(smallSegments(dir, nil))
	must(t, err)
	want = make([]byte, testSize)
	write := func(n int, place func(i int) int64) {
		for i := range n {
			p, off := bytes.Repeat([]byte{byte(i + 1)}, extents.Unit), place(i)*extents.Unit
			must(t, v.WriteAt(t.Context(), p, off, false))
			copy(want[off:], p)
		}
	}
	write(20, func(i int) int64 { return int64(100 + i) }) // lives on
	write(500, func(i int) int64 { return int64(i % 10) })
	must(t, v.Flush(t.Context()))
	v.work.Wait()
	v.tend()
	must(t, v.Close())
	return dir, want
}

// refused opens a journal that is not whole, and wants each byte of it left.
func refused(t *testing.T, what string, cfg Config) {
	t.Helper()
	before := files(t, cfg.Dir)
	v, err := Open(cfg)
	if err == nil {
		must(t, v.Close())
	}
	if !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("%s: %v, want ErrCorrupt", what, err)
	}
	if after := files(t, cfg.Dir); !maps.Equal(before, after) {
		t.Errorf("%s: there were %q, and are %q or others of these names", what, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
	}
}

// TestFolderWithPattern keeps a volume in a folder whose name is a pattern of names.
func TestFolderWithPattern(t *testing.T) {
	dir := filepath.Join(create(t), "data[1]*")
	must(t, Create(dir, testID()))
	v := open(t, dir, nil)
	p := bytes.Repeat([]byte{7}, extents.Unit)
	must(t, v.WriteAt(t.Context(), p, 0, false))
	must(t, v.Close())
	v = open(t, dir, nil)
	expect(t, v, append(p, make([]byte, testSize-extents.Unit)...), 0, testSize)
	must(t, v.Close())
}

// merged returns a segment of a folder that stands for others too.
func merged(t rapidT, dir string) (path string, h journal.Header) {
	t.Helper()
	for _, path := range segments(t, dir) {
		b, err := os.ReadFile(path)
		must(t, err)
		if h, err := journal.DecodeHeader(b); err == nil && h.Merged > 0 {
			return path, h
		}
	}
	t.Fatalf("no merged segment")
	return "", journal.Header{}
}

// TestMergedSegmentIsCut cuts a segment that stands for others, anywhere, and takes it away.
func TestMergedSegmentIsCut(t *testing.T) {
	dir, _ := rewritten(t)
	whole := files(t, dir)
	path, _ := merged(t, dir)
	size := len(whole[filepath.Base(path)])
	for cut := 0; cut < size; cut += size/50 + 1 {
		must(t, os.Truncate(path, int64(cut)))
		refused(t, "cut", smallSegments(dir, nil))
		put(t, dir, whole)
	}
	must(t, os.Remove(path))
	refused(t, "taken away", smallSegments(dir, nil))
}

// TestTornTable tears the table of a segment, as a loss of power does that leaves the
// segment's entries and the next one; then segments go that lay behind it.
func TestTornTable(t *testing.T) {
	dir := create(t)
	cfg := smallSegments(dir, nil)
	v, err := Open(cfg)
	must(t, err)
	want := make([]byte, testSize)
	write := func(n int, place int64) {
		for i := range n {
			p, off := bytes.Repeat([]byte{byte(i + 1)}, extents.Unit), (place+int64(i%7))*extents.Unit
			must(t, v.WriteAt(t.Context(), p, off, false))
			copy(want[off:], p)
		}
	}
	v.tended.Store(true) // nothing is synced beside
	write(7, 100)        // live on
	write(3, 0)
	must(t, v.Close())
	must(t, os.WriteFile(filepath.Join(dir, journal.NoteName), journal.Note{}.Encode(journal.Seed(testID(), 0)), 0o600)) // as the loss leaves it
	path := filepath.Join(dir, segmentName(1))
	f, err := os.Open(path)
	must(t, err)
	info, err := f.Stat()
	must(t, err)
	_, at, err := journal.ReadTable(f, journal.Seed(testID(), 1), info.Size())
	must(t, errors.Join(err, f.Close()))
	must(t, os.Truncate(path, at+1))
	v, err = Open(cfg)
	must(t, err)
	write(100, 0)
	v.work.Wait()
	v.tend()
	must(t, v.Close())
	merged(t, dir)
	v, err = Open(cfg)
	must(t, err)
	expect(t, v, want, 0, testSize)
	must(t, v.Close())
}

// TestOlderSegmentsUnderANewerNote restores the segments of a backup beside the note of
// later: nothing of them goes.
func TestOlderSegmentsUnderANewerNote(t *testing.T) {
	dir := create(t)
	v, err := Open(smallSegments(dir, nil))
	must(t, err)
	for i := range int64(40) {
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, extents.Unit), i*extents.Unit, false))
	}
	must(t, v.Flush(t.Context()))
	backup := files(t, dir)
	for i := range int64(400) {
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, extents.Unit), i%40*extents.Unit, i%100 == 0))
	}
	v.work.Wait()
	v.tend()
	must(t, v.Close())
	backup[journal.NoteName] = files(t, dir)[journal.NoteName]
	put(t, dir, backup)
	refused(t, "a note of later", smallSegments(dir, nil))
}

// TestNoteOfAnotherJournal has the note of another volume.
func TestNoteOfAnotherJournal(t *testing.T) {
	dir, _ := rewritten(t)
	other := filepath.Join(t.TempDir(), "other")
	cfg := smallSegments(other, nil)
	cfg.ID[0] = 2
	must(t, Create(other, cfg.ID))
	v, err := Open(cfg)
	must(t, err)
	for i := range int64(100) {
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, extents.SectorSize), i%90*extents.Unit, true))
	}
	must(t, v.Close())
	b, err := os.ReadFile(filepath.Join(dir, journal.NoteName))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(other, journal.NoteName), b, 0o600))
	refused(t, "the note of another", cfg)
}

// TestMixedFolders has a folder of files from two moments of a volume, as restores leave
// it: it opens as the disk was at one time from the first of them on, or not at all, and
// then each byte is left.
func TestMixedFolders(t *testing.T) {
	opened := 0
	rapid.Check(t, func(r *rapid.T) {
		dir := create(t)
		v, err := Open(smallSegments(dir, nil))
		must(r, err)
		want := make([]byte, testSize)
		var states [][]byte
		write := func(n int) {
			for range n {
				off := rapid.Int64Range(0, 12).Draw(r, "place") * extents.Unit
				p := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(r, "byte"))}, extents.Unit)
				must(r, v.WriteAt(r.Context(), p, off, false))
				copy(want[off:], p)
				states = append(states, slices.Clone(want))
			}
			must(r, v.Flush(r.Context()))
			v.work.Wait()
			if rapid.Bool().Draw(r, "tidy") {
				v.tend()
			}
		}
		write(rapid.IntRange(0, 30).Draw(r, "writes"))
		first := files(r, dir)
		states = [][]byte{slices.Clone(want)}
		write(rapid.IntRange(1, 30).Draw(r, "later writes"))
		must(r, v.Close())
		last := files(r, dir)
		mix := map[string]string{}
		for _, name := range slices.Sorted(maps.Keys(united(first, last))) {
			from := []map[string]string{first, last}
			if strings.HasSuffix(name, ".seg") || name == journal.NoteName {
				from = append(from, nil) // it may be away
			}
			if b, there := rapid.SampledFrom(from).Draw(r, name)[name]; there {
				mix[name] = b
			}
		}
		put(r, dir, mix)
		v, err = Open(smallSegments(dir, nil))
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				r.Fatal(err)
			}
			if after := files(r, dir); !maps.Equal(mix, after) {
				r.Fatalf("it is refused, and not as it was: %v", err)
			}
			return
		}
		opened++
		defer v.Close()
		expectAny(r, v, states)
	})
	if opened == 0 {
		t.Error("no mixture was as it had been")
	}
}

func united(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}
