package pagecache_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev/pagecache"
)

// TestColdPageIsNotWaitedFor reads what the kernel has forgotten: not at once, and
// well once it was fetched.
func TestColdPageIsNotWaitedFor(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 8 << 20
	if _, err := f.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	tells := fs.Type == unix.EXT4_SUPER_MAGIC || fs.Type == unix.XFS_SUPER_MAGIC || fs.Type == unix.BTRFS_SUPER_MAGIC
	if pagecache.Read(f, p, size/2) && tells {
		t.Error("a cold page was waited for")
	}
	if _, err := f.ReadAt(p, size/2); err != nil {
		t.Fatal(err)
	}
	if !pagecache.Read(f, p, size/2) {
		t.Error("a page that was just read is not there")
	}
}
