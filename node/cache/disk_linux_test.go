package cache

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestFullDisk mounts a file system that is smaller than the quota: chunks are
// not kept, reads go on, and once there is room again they are.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount a small disk, as root: %v: %s", err, out)
	}
	defer exec.Command("umount", "--lazy", dir).Run() // the index is mapped until its table is collected
	c := open(t, filepath.Join(dir, "cache"), quotaMin)
	defer c.Close()
	if st := c.Stats(); st.Limit >= 64<<20 || st.Quota != quotaMin {
		t.Errorf("on a disk of 64 MiB: %+v", st)
	}
	many := func(yield func(content.CID) bool) {
		for n := range 512 {
			if !yield(object(n, 64).CID()) {
				return
			}
		}
	}
	if err := c.Pin("toomuch", 0, many); !errors.Is(err, content.ErrNoSpace) || len(c.Pinned()) > 0 {
		t.Errorf("64 MiB pinned: %v, %q", err, c.Pinned())
	}
	filler := filepath.Join(dir, "filler")
	first := object(0, 128<<10)
	put(t, c, first)
	if err := os.WriteFile(filler, make([]byte, 46<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var full error
	for n := 1; n < 200 && full == nil; n++ {
		full = c.Put(object(n, 1<<20), ReachMesh)
	}
	if !errors.Is(full, content.ErrNoSpace) || !c.Stats().Full {
		t.Fatalf("on a full disk: %v, %+v", full, c.Stats())
	}
	if c.Has(first.CID()) {
		expect(t, c, first)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	v := object(500, 128<<10)
	put(t, c, v)
	expect(t, c, v)
	if c.Stats().Full {
		t.Error("still full")
	}
}

func TestEvictGivesSpaceBack(t *testing.T) {
	dir := t.TempDir()
	c := build(t, Config{Dir: dir})
	for n := range 1500 {
		put(t, c, object(n, 128<<10))
	}
	before := diskUse(t, dir)
	if freed := c.Evict(1 << 40); freed != 1500*128<<10 {
		t.Errorf("%d bytes evicted, want all", freed)
	}
	if after := diskUse(t, dir); before < 1500*128<<10 || after > 1<<20 {
		t.Errorf("%d bytes of disk before, %d after all was evicted", before, after)
	}
	if st := c.Stats(); st.Chunks != 0 || st.Disk != 0 {
		t.Errorf("%+v", st)
	}
	v := object(1, 128<<10)
	put(t, c, v)
	expect(t, c, v)
	check(t, c)
}

func diskUse(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
