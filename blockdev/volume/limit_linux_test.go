package volume

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
)

// TestFlushWithoutADescriptor has the process run out of file descriptors at the first
// flush of a segment, which needs one: that flush fails, and the volume goes on.
func TestFlushWithoutADescriptor(t *testing.T) {
	v := open(t, create(t), newImage(sourceSize))
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, extents.Unit), 0, false))
	var before syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before))
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(lowest(t)), Max: before.Max}))
	err := v.Flush(t.Context())
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before))
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("flush without a descriptor: %v", err)
	}
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, extents.Unit), extents.Unit, false))
	must(t, v.Flush(t.Context()))
	must(t, v.Close())
}

// TestCompactionWithoutADescriptor has the process run out of them when merged segments have their
// names: they stand beside what they were made of, and the next compaction begins anew.
func TestCompactionWithoutADescriptor(t *testing.T) {
	v := open(t, create(t), nil)
	v.tended.Store(true) // what tends is called here
	for i := range 2 * smallMax {
		sealed(t, v, i)
	}
	var before syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before))
	v.cfg.Step = func(name string) {
		if name == "renamed" {
			must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(lowest(t)), Max: before.Max}))
		}
	}
	v.tend()
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before))
	v.cfg.Step = func(string) {}
	if n := len(v.chain); n < 2*smallMax {
		t.Fatalf("%d segments: nothing has failed", n)
	}
	crashed := open(t, killed(t, v.cfg.Dir), nil)
	for _, v := range []*Volume{v, crashed} {
		expectSealed(t, v, 2*smallMax)
		if v.tend(); len(v.chain) > 2 || v.Stats().Failed != nil {
			t.Errorf("%d segments are left: %v", len(v.chain), v.Stats().Failed)
		}
		expectSealed(t, v, 2*smallMax)
		must(t, v.Close())
	}
}

// TestIdleVolumeReadsNoSpares: what its node does now and then, for each volume, reads nothing
// of the disk.
func TestIdleVolumeReadsNoSpares(t *testing.T) {
	cfg := smallSegments(create(t), nil)
	v, err := Open(cfg)
	must(t, err)
	overwrite(t, v, 4)
	cut(t, v, &cfg)
	if len(spareFiles(t, cfg.Dir)) == 0 {
		t.Fatal("there are no spares")
	}
	opened, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	must(t, err)
	_, err = unix.InotifyAddWatch(opened, cfg.Dir, unix.IN_OPEN)
	must(t, err)
	v.Yield()
	if n, err := unix.Read(opened, make([]byte, 4096)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a file was opened: %d bytes of events, %v", n, err)
	}
	must(t, unix.Close(opened))
	must(t, v.Close())
}

// lowest is the number that the next file would get.
func lowest(t *testing.T) uintptr {
	t.Helper()
	f, err := os.Open(os.DevNull)
	must(t, err)
	defer f.Close()
	return f.Fd()
}

// TestFullDiskIsSaid writes to a volume whose disk is full, and when it is not any more.
func TestFullDiskIsSaid(t *testing.T) {
	dir := t.TempDir()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	defer func() { must(t, syscall.Unmount(dir, 0)) }()
	must(t, Create(filepath.Join(dir, "v"), testID()))
	v := open(t, filepath.Join(dir, "v"), nil)
	filler := filepath.Join(dir, "filler")
	must(t, os.WriteFile(filler, make([]byte, 900<<10), 0o600))
	p := bytes.Repeat([]byte{3}, 64<<10)
	must(t, v.WriteAt(t.Context(), p, 0, true))
	if err := v.WriteAt(t.Context(), p, 0, false); !errors.Is(err, content.ErrNoSpace) || !v.Stats().Full {
		t.Errorf("on a full disk: %v, %+v", err, v.Stats())
	}
	must(t, v.Flush(t.Context()))
	must(t, os.Remove(filler))
	must(t, v.WriteAt(t.Context(), p, 1<<20, false))
	if v.Stats().Full || v.Stats().Failed != nil {
		t.Errorf("with room again: %+v", v.Stats())
	}
	must(t, v.Close())
}

// TestStoppedVolumeSaysWhy takes the journal's file away under a volume.
func TestStoppedVolumeSaysWhy(t *testing.T) {
	v := open(t, create(t), nil)
	must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false))
	must(t, v.chain[0].file.Close())
	if err := v.Flush(t.Context()); err == nil || v.Stats().Failed == nil {
		t.Errorf("flushed: %v, %+v", err, v.Stats())
	}
	_ = v.Close()
}

// TestPromptWriteWaitsItsTurn: a write that does not wait is no faster than one that
// does.
func TestPromptWriteWaitsItsTurn(t *testing.T) {
	v := open(t, create(t), nil)
	must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false))
	v.take()
	if v.TryWriteFrom(bytes.NewReader(make([]byte, extents.Unit)), extents.Unit, 0) {
		t.Error("it has overtaken one that waits")
	}
	v.turns.pass()
	if !v.TryWriteFrom(bytes.NewReader(make([]byte, extents.Unit)), extents.Unit, 0) {
		t.Error("it is not taken though none waits")
	}
	must(t, v.Close())
}
