//go:build unix

package dir

import (
	"errors"
	"os"
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
		defer os.Chmod(dir, 0o755)
	}
	if os.Geteuid() == 0 { // root may write anywhere
		if err := syscall.Setegid(65534); err != nil {
			t.Fatal(err)
		}
		defer syscall.Setegid(0)
		if err := syscall.Seteuid(65534); err != nil {
			t.Fatal(err)
		}
		defer syscall.Seteuid(0)
	}
	if err := bucket.Probe(t.Context(), b); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("probe: %v, want ErrReadOnly", err)
	}
	if err := b.Delete(t.Context(), "records/a"); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("delete: %v, want ErrReadOnly", err)
	}
}
