package mounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert"
)

// store has chunks by their names.
type store map[content.CID][]byte

// put stores what is in a folder, as far as it is not known, and returns its chunks in order, and what its files have become.
func (s store) put(t *testing.T, dir string, was map[content.CID]tree.Segment) (all []content.CID, now map[content.CID]tree.Segment, kept int) {
	t.Helper()
	now = map[content.CID]tree.Segment{}
	w, err := tree.NewWriter(tree.Config{
		Codec: content.NewCodec(),
		Add: func(_ context.Context, _ uint64, raw []byte) error {
			id := content.Sum(raw)
			s[id], all = bytes.Clone(raw), append(all, id)
			return nil
		},
		Known: func(key content.CID) (tree.Segment, bool) { k, ok := was[key]; return k, ok },
		Keep: func(_ context.Context, _ uint64, p tree.Piece) error {
			all, kept = append(all, p.CID), kept+p.Length
			return nil
		},
		Note: func(key content.CID, k tree.Segment) { now[key] = k },
	})
	must(t, err)
	files, err := convert.OpenFiles(t.Context(), convert.Options{Path: dir, Format: convert.Dir, Warn: func(text string) { t.Log(text) }, Note: func(string) {}})
	must(t, err)
	defer files.Close()
	_, err = files.Plant(t.Context(), w)
	must(t, err)
	return all, now, kept
}

// changes does to the files of a folder what workloads do, and keeps what times and sizes it can.
func changes(t *testing.T, dir string, r *rand.Rand, n int) {
	t.Helper()
	for range n {
		var all []string
		must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				all = append(all, p)
			}
			return err
		}))
		a, b := all[r.IntN(len(all))], all[r.IntN(len(all))]
		var st unix.Stat_t
		must(t, unix.Stat(a, &st))
		junk := make([]byte, st.Size)
		for i := range junk {
			junk[i] = byte(r.Uint32())
		}
		times := []unix.Timespec{st.Mtim, st.Mtim}
		switch r.IntN(9) {
		case 0: // as rsync --inplace does
			must(t, os.WriteFile(a, junk, 0o644), unix.UtimesNanoAt(unix.AT_FDCWD, a, times, 0))
		case 1: // as rsync does
			must(t, os.WriteFile(a+"~", junk, 0o644), unix.UtimesNanoAt(unix.AT_FDCWD, a+"~", times, 0), os.Rename(a+"~", a))
		case 2:
			must(t, os.Rename(a, b))
		case 3: // they change places, one after the other
			if a != b {
				must(t, os.Rename(a, a+"~"), os.Rename(b, a), os.Rename(a+"~", b))
			}
		case 4:
			must(t, os.Link(a, filepath.Join(dir, fmt.Sprint("link", r.Uint32()))))
		case 5:
			if st.Size == 0 {
				continue
			}
			f, err := os.OpenFile(a, os.O_RDWR, 0)
			must(t, err)
			p, err := unix.Mmap(int(f.Fd()), 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			p[r.IntN(len(p))]++
			must(t, unix.Munmap(p), f.Close(), unix.UtimesNanoAt(unix.AT_FDCWD, a, times, 0))
		case 6: // gone, and there again
			must(t, os.Remove(a), os.WriteFile(a, junk, 0o644), unix.UtimesNanoAt(unix.AT_FDCWD, a, times, 0))
		case 7:
			must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
		case 8:
			must(t, os.Chmod(a, 0o600), os.Truncate(a, st.Size/2), os.Truncate(a, st.Size), unix.UtimesNanoAt(unix.AT_FDCWD, a, times, 0))
		}
	}
}

// TestNamesOfOneFile: a file that was linked where it is shown has one number once that is shown anew, whatever the kernel forgets
// of it; before, each of its names may have another.
func TestNamesOfOneFile(t *testing.T) {
	src := t.TempDir()
	must(t, os.Mkdir(filepath.Join(src, "a"), 0o755), os.WriteFile(filepath.Join(src, "a/file"), []byte("words"), 0o644))
	at, again := overlaid(t, planted(t, src))
	name, other := filepath.Join(at, "a/file"), filepath.Join(at, "other")
	must(t, os.Link(name, other), again())
	var one, two unix.Stat_t
	must(t, unix.Stat(name, &one), os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0), unix.Stat(other, &two))
	if one.Ino != two.Ino || one.Dev != two.Dev {
		t.Errorf("%d on %d and %d on %d", one.Ino, one.Dev, two.Ino, two.Dev)
	}
}

// overlaid shows a tree at a folder that can be written to, until the test ends; and again.
func overlaid(t *testing.T, of *tree.Tree) (at string, again func() error) {
	t.Helper()
	m, over := newMounts(t, filepath.Join(t.TempDir(), "mounts.json"), of), t.TempDir()
	at = filepath.Join(over, "at")
	lower, upper, work := filepath.Join(over, "lower"), filepath.Join(over, "upper"), filepath.Join(over, "work")
	must(t, os.Mkdir(at, 0o755), os.Mkdir(lower, 0o755), os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755))
	_, err := m.Mount(t.Context(), "debian", lower)
	must(t, err, Overlay(at, lower, upper, work))
	t.Cleanup(func() { must(t, Detach(at), m.Unmount(context.WithoutCancel(t.Context()), lower)) })
	return at, func() error { return errors.Join(Detach(at), Overlay(at, lower, upper, work)) }
}

// TestWhatIsWrittenOver: whatever is done over a tree that is shown, what is put away by what is known of it has all that was
// written, and what was not changed is not read.
func TestWhatIsWrittenOver(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	src := t.TempDir()
	shell(t, src, "mkdir a b c")
	for i := range 60 {
		data := make([]byte, []int{0, 10, 3000, 3000, 70_000, 400_000}[i%6])
		for k := range data {
			data[k] = byte(r.Uint32())
		}
		path := filepath.Join(src, string("abc"[i%3]), fmt.Sprintf("f%d", i%11))
		must(t, os.WriteFile(path, data, 0o644), os.Chtimes(path, time.Time{}, time.Unix(1_700_000_000+int64(i%3), int64(i%2)*500)))
	}
	shell(t, src, "ln a/f0 b/again; ln a/f3 a/twin")
	s, lower := store{}, planted(t, src)
	was := map[content.CID]tree.Segment{}
	chunks, _, _ := s.put(t, src, nil)
	must(t, lower.Segments(t.Context(), tree.Cuts{
		Stamp: func(f tree.File, number uint64) []byte {
			return convert.StampOf(number, f.Changed().UnixNano(), f.Changed().UnixNano())
		},
		CID: func(_ context.Context, index uint64) (content.CID, error) { return chunks[index], nil }, Note: func(key content.CID, k tree.Segment) { was[key] = k },
	}))
	at, again := overlaid(t, lower)
	if _, _, kept := s.put(t, at, was); kept == 0 {
		t.Error("all is read of what nobody has changed")
	}
	for round := range 3 {
		changes(t, at, r, 1+r.IntN(12))
		<-time.After(2100 * time.Millisecond) // what has changed just before has no stamps
		must(t, again())
		got, now, kept := s.put(t, at, was)
		want, _, _ := s.put(t, at, nil)
		t.Log(round, "kept", kept)
		if !slices.Equal(got, want) {
			t.Fatalf("round %d: what is put away is not what was written", round)
		}
		maps.Copy(was, now)
	}
}
