package index

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

func newIndex(t *testing.T) *Index {
	t.Helper()
	x, err := Load(filepath.Join(t.TempDir(), "volumes"), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func newEntry(id byte, name string) Entry {
	return Entry{Name: name, Volume: catalog.Volume{ID: content.VolumeID{id}, Size: 512, Policy: catalog.PolicyLocal, State: catalog.Attached}}
}

func (x *Index) make(t *testing.T, id byte, name string) Entry {
	t.Helper()
	e := newEntry(id, name)
	if err := errors.Join(x.Prepare(e), x.Add(e)); err != nil {
		t.Fatal(err)
	}
	return e
}

func names(x *Index) (out []string) {
	for _, e := range x.Sorted() {
		out = append(out, e.Name)
	}
	return out
}

func TestIndexIsReadBack(t *testing.T) {
	x, number := newIndex(t), 7
	b, a, c := x.make(t, 1, "b"), x.make(t, 2, "a"), x.make(t, 3, "c")
	half := newEntry(4, "half")
	b.Disk, a.Name = &number, "z"
	if err := errors.Join(x.put(b), x.Remove(c), x.Rename("a", a), x.Prepare(half)); err != nil {
		t.Fatal(err)
	}
	again, err := Load(x.dir, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	read, _ := again.Get("b")
	if got := fmt.Sprint(names(again)); got != "[b z]" || *read.Disk != number || len(again.Broken) > 0 {
		t.Errorf("%s, %+v, %v", got, read, again.Broken)
	}
	if err := os.Mkdir(x.Path(Entry{})+halfMade, 0o700); err != nil { // nothing is in it yet
		t.Fatal(err)
	}
	if err := again.Sweep(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(x.dir)
	if got := fmt.Sprint(names(again)); err != nil || len(left) != 3 || got != "[b half z]" {
		t.Errorf("after the sweep: %v, %v; %s", left, err, got)
	}
	if err := x.Free("z"); !errors.Is(err, content.ErrConflict) {
		t.Errorf("a name that is taken: %v", err)
	}
	for i := range volumesMax {
		x.keep(Entry{Name: fmt.Sprint(i)})
	}
	if err := x.Free("one more"); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("one more than the limit: %v", err)
	}
}

// TestSweepInAFolderWithPattern: the data folder's name is no pattern.
func TestSweepInAFolderWithPattern(t *testing.T) {
	root := t.TempDir()
	other, dir := filepath.Join(root, "da"), filepath.Join(root, "d[a]")
	for _, path := range []string{filepath.Join(other, Entry{}.Folder()+halfMade), filepath.Join(dir, Entry{}.Folder()+halfGone)} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	x, err := Load(dir, func(string) {})
	if err == nil {
		err = x.Sweep()
	}
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if left, err := os.ReadDir(other); err != nil || len(left) != 1 {
		t.Errorf("in another folder: %v, %v", left, err)
	}
}

// TestIndexKeepsWhatItCannotSave changes volumes whose folders take no file.
func TestIndexKeepsWhatItCannotSave(t *testing.T) {
	x := newIndex(t)
	a := x.make(t, 1, "a")
	if err := errors.Join(os.RemoveAll(x.dir), os.WriteFile(x.dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	other := a
	other.Size, other.Name = 1024, "b"
	for what, change := range map[string]func() error{
		"put":     func() error { e := a; e.Size = 1024; return x.put(e) },
		"prepare": func() error { return x.Prepare(newEntry(2, "b")) },
		"remove":  func() error { return x.Remove(a) },
		"rename":  func() error { return x.Rename("a", other) },
	} {
		if err := change(); err == nil {
			t.Errorf("%s: no error", what)
		}
		if e, ok := x.Get("a"); !ok || e.Size != 512 || len(names(x)) != 1 {
			t.Errorf("%s: the volumes are %v", what, names(x))
		}
	}
}

// TestFlippedBits: no bit of volume.json may flip, as one of a name or size, and go unseen.
func TestFlippedBits(t *testing.T) {
	x := newIndex(t)
	folder := x.Path(x.make(t, 1, "web1"))
	whole, err := os.ReadFile(filepath.Join(folder, FileName))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 * len(whole) {
		b := bytes.Clone(whole)
		b[i/8] ^= 1 << (i % 8)
		if err := os.WriteFile(filepath.Join(folder, FileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if e, err := x.read(folder, filepath.Base(folder)); !errors.Is(err, content.ErrCorrupt) {
			t.Fatalf("bit %d: %+v, %v", i, e, err)
		}
	}
}

// TestAQuotaIsAFullDisk: who makes something there is told the same.
func TestAQuotaIsAFullDisk(t *testing.T) {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		if err := spaceError(&fs.PathError{Op: "write", Err: full}); !errors.Is(err, content.ErrNoSpace) {
			t.Errorf("%v is %v", full, err)
		}
	}
}

// TestHalfWrittenFilesAreSwept: those that a crash has left in the folder of a volume.
func TestHalfWrittenFilesAreSwept(t *testing.T) {
	x := newIndex(t)
	left := filepath.Join(x.Path(x.make(t, 1, "a")), ".tmp-123")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := x.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

// TestHalfAdoptedIsDiscarded: a crash while the next epoch of a volume was adopted leaves a
// folder that lacks some of it, and what that was made of.
func TestHalfAdoptedIsDiscarded(t *testing.T) {
	for _, tried := range [][]right.Stamp{nil, {{Epoch: 9, Incarnation: 1}}} {
		x := newIndex(t)
		e := x.make(t, 1, "a")
		e, err := x.Change(e.Name, func(e *Entry) { e.Committed, e.Epoch = true, 3 })
		if err != nil {
			t.Fatal(err)
		}
		next := e
		next.Adopted, next.Epoch, next.Tried = true, 8, tried
		if err := errors.Join(x.Prepare(next), x.Sweep()); err != nil {
			t.Fatal(err)
		}
		got, _ := x.Get("a")
		if want := map[bool]uint64{false: 3, true: 8}[len(tried) > 0]; got.Epoch != want {
			t.Errorf("epoch %d, want %d", got.Epoch, want)
		}
		if _, err := os.Stat(x.HalfMade(next)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is left: %v", err)
		}
	}
}
