package extents

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/origin/content/scratch"
)

// TestFullDiskKeepsNothing spills a list to a disk that is full: its file goes, so that who
// tries again and again fills no disk by that.
func TestFullDiskKeepsNothing(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small disk, as root: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("a file is open still: %v", err)
		}
	}()
	_ = os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 128<<10), 0o600) // which fails
	var m Map
	m.Put(Extent{Start: 1, N: 1, Data: SectorSize, Entry: 1})
	if _, _, err := Gather(dir, new(scratch.Pool), m.From(0), 0); err == nil {
		t.Fatal("it has found room")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, TempPrefix+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
