package volumes

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// TestFolderThatCannotBeRead damages what folders say of their volumes: the others are
// served, these are shown as failed and kept byte for byte, and their names are not
// given away.
func TestFolderThatCannotBeRead(t *testing.T) {
	for what, damage := range map[string]func(path string) error{
		"missing": os.Remove,
		"empty":   func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"cut":     func(path string) error { return os.Truncate(path, 20) },
		"zeros":   func(path string) error { return os.WriteFile(path, make([]byte, 300), 0o600) },
		"another": func(path string) error { return os.WriteFile(path, []byte(`{"magic":"grange-volume/9"}`), 0o600) },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.create(t, "good")
			w.create(t, "bad")
			if err := w.device("bad").vol.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 512), 0, true); err != nil {
				t.Fatal(err)
			}
			e, _ := w.index.Get("bad")
			folder := w.index.Path(e)
			w.stop(t)
			if err := damage(filepath.Join(folder, index.FileName)); err != nil {
				t.Fatal(err)
			}
			before := files(t, folder)
			if !index.Expected(filepath.Dir(folder)) {
				t.Error("nobody is said to wait")
			}
			w = w.again(t)
			w.openAll(t.Context())
			list := w.List()
			if len(list) != 2 || list[0].Name != "good" || list[0].State != terms.StateUncommitted || list[1].State != terms.StateFailed || list[1].Name != e.Folder() {
				t.Errorf("listed: %+v", list)
			}
			w.origin.record = &catalog.Volume{ID: e.ID, Size: e.Size, Policy: catalog.PolicyLocal, Epoch: 1, Holder: w.cfg.Self, State: catalog.Attached}
			if _, _, err := w.Put(t.Context(), "bad", Spec{Size: 1 << 20}); !errors.Is(err, content.ErrConflict) {
				t.Errorf("a new one over it: %v", err)
			}
			if err := w.Remove(t.Context(), e.Folder(), RemoveSpec{Force: true}); !errors.Is(err, content.ErrCorrupt) {
				t.Errorf("removed: %v", err)
			}
			if after := files(t, folder); !slices.Equal(before, after) {
				t.Errorf("the folder had %q and has %q", before, after)
			}
		})
	}
}

// files are the names and contents in a folder.
func files(t *testing.T, folder string) (out []string) {
	t.Helper()
	list, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		b, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f.Name()+": "+string(b))
	}
	return out
}

// TestCopiesAreLeft: a start removes no copy of a volume, whatever it is called.
func TestCopiesAreLeft(t *testing.T) {
	w := newWorld(t)
	w.create(t, "disk")
	if err := w.device("disk").vol.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 512), 0, true); err != nil {
		t.Fatal(err)
	}
	e, _ := w.index.Get("disk")
	path := w.index.Path(e)
	w.stop(t)
	copies := []string{path + ".new", path + ".gone", filepath.Join(w.cfg.Dir, "disk.new"), filepath.Join(w.cfg.Dir, "disk.gone")}
	for _, name := range copies {
		if err := os.CopyFS(name, os.DirFS(path)); err != nil {
			t.Fatal(err)
		}
	}
	w = w.again(t)
	want := files(t, path)
	for _, name := range copies {
		if got, err := os.ReadDir(name); err != nil || len(got) != len(want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if got := w.state(t, "disk"); len(w.List()) != 3 || got != terms.StateOpening {
		t.Errorf("%+v", w.List())
	}
}

// TestCopiedFolder: a copy of a volume's folder beside it is no second one.
func TestCopiedFolder(t *testing.T) {
	w := newWorld(t)
	w.create(t, "disk")
	e, _ := w.index.Get("disk")
	path := w.index.Path(e)
	w.stop(t)
	if err := os.CopyFS(path+".bak", os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	w = w.again(t)
	w.openAll(t.Context())
	if list := w.List(); len(list) != 2 || list[0].State != terms.StateUncommitted || list[1].State != terms.StateFailed {
		t.Errorf("%+v", list)
	}
}

// TestOneVolumeWaitsForNoOther creates a volume while the origin does not answer for
// another.
func TestOneVolumeWaitsForNoOther(t *testing.T) {
	w := newWorld(t)
	held, release := make(chan struct{}), make(chan struct{})
	w.origin.hold = func(name string) {
		if name == "slow" {
			close(held)
			<-release
		}
	}
	slow := make(chan error, 1)
	go func() {
		_, _, err := w.Put(context.Background(), "slow", Spec{Size: 1 << 20, Transport: terms.NBD})
		slow <- err
	}()
	<-held
	w.create(t, "quick")
	if _, err := w.Detach(t.Context(), "quick", false); err != nil {
		t.Error(err)
	}
	if _, err := w.Get("slow"); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("half made, it is there: %v", err)
	}
	close(release)
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

// TestOpening looks at a volume, and asks for it, before it is open.
func TestOpening(t *testing.T) {
	w := newWorld(t)
	w.create(t, "disk")
	w = w.again(t)
	if w.state(t, "disk") != terms.StateOpening {
		t.Errorf("it is %s", w.state(t, "disk"))
	}
	x := exports{w.Volumes}
	if names, err := x.List(t.Context()); err != nil || !slices.Equal(names, []string{"disk"}) {
		t.Errorf("exports: %q, %v", names, err)
	}
	done := make(chan error, 1)
	go func() {
		_, release, err := x.Lookup(context.Background(), "disk")
		if err == nil {
			release()
		}
		done <- err
	}()
	w.openAll(t.Context())
	if err := <-done; err != nil {
		t.Errorf("asked while it was opening: %v", err)
	}
	if w.state(t, "disk") != terms.StateUncommitted {
		t.Errorf("it is %s", w.state(t, "disk"))
	}
}

// TestJournalThatIsGone takes all of a volume's folder away but volume.json: the volume
// is no new one, to be written or to be read, and says what to do. One that was never
// written to has been killed at any time, and is served.
func TestJournalThatIsGone(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"new", "lost"} {
		w.create(t, name)
	}
	if err := w.device("lost").vol.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 512), 0, true); err != nil {
		t.Fatal(err)
	}
	e, _ := w.index.Get("lost")
	folder := w.index.Path(e)
	w.stop(t)
	list, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if f.Name() != index.FileName {
			if err := os.Remove(filepath.Join(folder, f.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	w = w.again(t)
	w.openAll(t.Context())
	if lost, err := w.Get("lost"); err != nil || lost.State != terms.StateFailed || !strings.Contains(lost.Detail, "backup") || !strings.Contains(lost.Detail, folder) {
		t.Errorf("without a journal: %+v, %v", lost, err)
	}
	if w.state(t, "new") != terms.StateUncommitted {
		t.Errorf("never written: %s", w.state(t, "new"))
	}
	if _, _, err := w.Put(t.Context(), "lost", Spec{ReadOnly: true}); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("to be read: %v", err)
	}
	if err := w.Remove(t.Context(), "lost", RemoveSpec{}); err != nil {
		t.Error(err)
	}
}
