package images

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
)

// TestTwoExportsIntoOneFolder: the second waits for nobody and is told, whatever it calls the folder, and if it wants all that this
// one lies in; when the first has ended, however it did, others may.
func TestTwoExportsIntoOneFolder(t *testing.T) {
	w, dir, top := newWorld(t), t.TempDir(), t.TempDir()
	out, link := filepath.Join(top, "out"), filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), []byte("words"), 0o640), os.Symlink(top, link)); err != nil {
		t.Fatal(err)
	}
	w.planted(t, "site", dir, false)
	leave, err := w.exports.enter(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, into := range []string{out, filepath.Join(link, "out"), top, filepath.Join(out, "in")} {
		if err := os.MkdirAll(filepath.Dir(into), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := w.ExportTree("site", into, true); !errors.Is(err, content.Running) {
			t.Errorf("into %s: %v", into, err)
		}
	}
	leave()
	for _, x := range []struct {
		name, dir string
		force     bool
		want      operations.State
	}{{"nowhere", out, true, operations.Failed}, {"site", "relative", true, ""}, {"..", out, true, ""}, {"site", out, true, operations.Done}, {"site", top, true, operations.Done}, {"site", top + "-beside", false, operations.Done}} {
		v, err := w.ExportTree(x.name, x.dir, x.force)
		if err == nil {
			v = w.ended(t, v)
		}
		if v.State != x.want || errors.Is(err, content.Running) {
			t.Errorf("%+v: %+v, %v", x, v, err)
		}
	}
	if left := w.exports.all; len(left) > 0 {
		t.Errorf("%s is written to for ever", left)
	}
}

// TestExportsOverMounts: what is mounted in a folder has an export refused before anything goes, whatever its name is; a folder
// that is a mount itself may be filled.
func TestExportsOverMounts(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	out, link := filepath.Join(top, "out"), filepath.Join(top, "link")
	at := filepath.Join(out, "with space\n\\040", "disk")
	mount := func(dir string) {
		t.Helper()
		if err := syscall.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	}
	if err := errors.Join(os.MkdirAll(at, 0o755), os.Symlink(out, link)); err != nil {
		t.Fatal(err)
	}
	mount(at)
	for _, dir := range []string{out, link} {
		if err := w.mayFill(dir, true); !errors.Is(err, content.ErrConflict) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(at, "file"), nil, 0o600), w.mayFill(at, true), os.MkdirAll(out+"-beside/in", 0o755), w.mayFill(out+"-beside", true)); err != nil {
		t.Error(err)
	}
}
