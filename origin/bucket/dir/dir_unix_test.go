//go:build unix

package dir

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// TestReadOnlyFoldersSaySo writes to a folder as somebody who may not.
func TestReadOnlyFoldersSaySo(t *testing.T) {
	root := t.TempDir()
	b := open(t, root)
	if _, err := b.Put(t.Context(), "records/a", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, root + "/" + tmpDir, root + "/records"} {
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(dir, 0o755) })
	}
	asNobody(t, root)
	if err := bucket.Probe(t.Context(), b); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("probe: %v, want ErrReadOnly", err)
	}
	if err := b.Delete(t.Context(), "records/a"); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("delete: %v, want ErrReadOnly", err)
	}
}

// TestFoldersOfOthersAreForbidden reads where somebody may not.
func TestFoldersOfOthersAreForbidden(t *testing.T) {
	root := t.TempDir()
	b := open(t, root)
	if _, err := b.Put(t.Context(), "records/a", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	records := root + "/records"
	if err := os.Chmod(records, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(records, 0o755) })
	asNobody(t, root)
	if _, err := b.Get(t.Context(), "records/a", bucket.Range{}); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("get: %v, want ErrForbidden", err)
	}
	for info, err := range b.List(t.Context(), "records/", "") {
		if !errors.Is(err, content.ErrForbidden) {
			t.Errorf("list: %+v, %v, want ErrForbidden", info, err)
		}
	}
}

// asNobody goes on as a user who may only do what everybody may, until the test
// ends: root may read and write anywhere. The way to root is open to that user.
func asNobody(t *testing.T, root string) {
	if os.Geteuid() != 0 {
		return
	}
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil { // the test's own folder
		t.Fatal(err)
	}
	if err := syscall.Setegid(65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Setegid(0) })
	if err := syscall.Seteuid(65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Seteuid(0) })
}
