package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert"
)

func (w *world) planted(t *testing.T, name, dir string, replace bool) operations.View {
	t.Helper()
	v, err := w.ImportTree(t.Context(), name, ImportRequest{Options: convert.Options{Path: dir}, Replace: replace})
	if err != nil {
		t.Fatal(err)
	}
	return w.ended(t, v)
}

// ended waits for the end of an operation.
func (w *world) ended(t *testing.T, v operations.View) operations.View {
	t.Helper()
	for v.State == operations.Running {
		var err error
		if v, err = w.cfg.Operations.Wait(t.Context(), v.ID); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// TestTreesAreNamedAsImages: a tree is published, published anew and written out; its name is no image's, and an image's
// no tree's.
func TestTreesAreNamedAsImages(t *testing.T) {
	w := newWorld(t)
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write("file", "words")
	if v := w.planted(t, "site", dir, false); v.State != operations.Done || v.Done == 0 {
		t.Fatalf("%+v", v)
	}
	if _, err := w.ImportTree(t.Context(), "site", ImportRequest{Options: convert.Options{Path: dir}}); !errors.Is(err, content.ErrExists) {
		t.Errorf("again: %v", err)
	}
	if _, err := w.Import(t.Context(), "site", ImportRequest{Options: convert.Options{Path: dir}, Replace: true}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("as an image: %v", err)
	}
	write("other", "more")
	if v := w.planted(t, "site", dir, true); v.State != operations.Done {
		t.Fatalf("%+v", v)
	}
	i, err := w.Get(t.Context(), "site")
	if err != nil || i.Kind != content.KindTree || i.Version != 2 {
		t.Errorf("%+v, %v", i, err)
	}
	page, more, err := w.List(t.Context(), content.RootTree, "", 1)
	if err != nil || more || len(page) != 1 || page[0].Name != "site" {
		t.Errorf("trees: %+v, %t, %v", page, more, err)
	}
	if _, err := w.Base(t.Context(), content.Ref{Kind: content.KindImage, Name: "site"}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("a volume of it: %v", err)
	}
	v, err := w.ExportTree("site", out, false)
	if err != nil {
		t.Fatal(err)
	}
	if v = w.ended(t, v); v.State != operations.Done {
		t.Fatalf("%+v", v)
	}
	for name, want := range map[string]string{"file": "words", "other": "more"} {
		if got, err := os.ReadFile(filepath.Join(out, name)); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestTreesGoWhereTheyMay: an export fills a folder that is empty or not there, and none of the node's own.
func TestTreesGoWhereTheyMay(t *testing.T) {
	w := newWorld(t)
	full, own := t.TempDir(), filepath.Join(w.cfg.Dir, "volumes")
	if err := errors.Join(os.Mkdir(own, 0o700), os.WriteFile(filepath.Join(full, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		dir   string
		force bool
		want  error
	}{
		{"relative", true, content.ErrInvalid}, {"/", true, content.ErrInvalid}, {full, false, content.ErrExists}, {full, true, nil}, {t.TempDir(), false, nil}, {filepath.Join(full, "new"), false, nil},
		{filepath.Join(full, "no", "new"), false, content.ErrInvalid}, {filepath.Join(full, "file"), true, content.ErrInvalid}, {own, true, content.ErrInvalid}, {w.cfg.Dir, true, content.ErrInvalid}, {filepath.Dir(w.cfg.Dir), true, content.ErrInvalid}, {filepath.Join(own, "new"), true, content.ErrInvalid},
	} {
		if err := w.mayFill(x.dir, x.force); !errors.Is(err, x.want) {
			t.Errorf("%s, force %t: %v, want %v", x.dir, x.force, err, x.want)
		}
	}
}

// TestWhatHasNotChangedIsNotSent: of files that were stowed before those that have changed alone are read and stored.
func TestWhatHasNotChangedIsNotSent(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	old := time.Now().Add(-time.Hour)
	write := func(name string, n int, seed byte) {
		t.Helper()
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(i*i>>3) ^ byte(i>>9) ^ seed
		}
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), data, 0o600), os.Chtimes(filepath.Join(dir, name), old, old)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		write(fmt.Sprintf("f%02d", i), 1000+i*7919%9000, byte(i))
	}
	write("large", 1<<20, 99)
	for i := range 2 { // written at about one time, of one size and name
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint("d", i)), 0o700); err != nil {
			t.Fatal(err)
		}
		write(fmt.Sprintf("d%d/twin", i), 1<<20, byte(50+i))
	}
	stow := func(was Stowed) (v operations.View, body catalog.Image, now Stowed) {
		t.Helper()
		op, err := w.cfg.Operations.Start("stow", "x", func(ctx context.Context, op *operations.Operation) error {
			var err error
			body, now, err = w.Stow(ctx, op, ToStow{Dir: dir, Scope: content.Mesh(), Was: was})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return w.ended(t, op), body, now
	}
	<-time.After(2100 * time.Millisecond) // the stamps of what has just changed say nothing
	v, first, was := stow(nil)
	if v.State != operations.Done || v.Bytes["kept"] > 0 || len(was) == 0 {
		t.Fatalf("%+v, %d segments", v, len(was))
	}
	v, again, _ := stow(was)
	if v.State != operations.Done || again.Head.Root != first.Head.Root || v.Bytes["new"] > 0 || v.Bytes["kept"] < 1<<20 {
		t.Errorf("%+v; the root is the same: %t", v, again.Head.Root == first.Head.Root)
	}
	if recalled, err := w.Recall(t.Context(), dir); err != nil || !maps.EqualFunc(recalled, was, func(a, b tree.Segment) bool { return reflect.DeepEqual(a, b) }) {
		t.Errorf("of %d segments %d are recalled, or others: %v", len(was), len(recalled), err)
	}
	write("f25", 5000, 7)
	v, changed, _ := stow(was)
	if v.State != operations.Done || changed.Head.Root == first.Head.Root || v.Bytes["kept"] < 1<<20 || v.Bytes["new"] == 0 || v.Bytes["new"] > 400<<10 {
		t.Errorf("%+v", v)
	}
}
