package node

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/content"
)

func TestWorkingFilesLeaveTheVolumesTheirPart(t *testing.T) {
	disk := func(free, total uint64) working {
		return working{"/x", func(string) (uint64, uint64, error) { return free, total, nil }}
	}
	const tib = 1 << 40
	for _, c := range []struct {
		free, total uint64
		n           int64
		fits        bool
	}{{100, 4000, 0, true}, {99, 4000, 0, false}, {200, 4000, 100, true}, {200, 4000, 101, false}, {17 << 30, tib, 1 << 30, true}, {17 << 30, tib, 1<<30 + 1, false}} {
		if err := disk(c.free, c.total).room(c.n); (err == nil) != c.fits || err != nil && !errors.Is(err, content.ErrNoSpace) {
			t.Errorf("%d of %d free, %d wanted: %v", c.free, c.total, c.n, err)
		}
	}
}

func TestGuardEndsWorkWhenOthersFillTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		w := working{"/x", func(string) (uint64, uint64, error) {
			looks++
			return uint64(1000 - 100*looks), 4000, nil
		}}
		ctx, stop := w.guard(t.Context())
		<-ctx.Done()
		stop()
		if !errors.Is(context.Cause(ctx), content.ErrNoSpace) {
			t.Errorf("it ended with %v", context.Cause(ctx))
		}
	})
}

// TestImportEndsBeforeTheDiskIsFull has a data folder on a disk of its own.
func TestImportEndsBeforeTheDiskIsFull(t *testing.T) {
	n := newMember(t)
	n.cfg.Dir = t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "none", n.cfg.Dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", n.cfg.Dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	n.Operations = NewOperations(n.cfg.Log, n.cfg.Now)
	source := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(n.cfg.Dir, TempDir), 0o700), os.WriteFile(filepath.Join(source, "large"), []byte(strings.Repeat("large", 20<<20)), 0o600)); err != nil {
		t.Fatal(err)
	}
	view, err := n.Images.Import(t.Context(), "big", ImportRequest{Source: source})
	if err != nil {
		t.Fatal(err)
	}
	view, err = n.Operations.Wait(t.Context(), view.ID)
	if err != nil || !strings.Contains(view.Error, content.ErrNoSpace.Error()) {
		t.Errorf("%v, %q, want ErrNoSpace", err, view.Error)
	}
	free, total, err := cache.DiskFree(n.cfg.Dir)
	if err != nil || free < total/workingShare {
		t.Errorf("%d of %d are free (%v)", free, total, err)
	}
	if left, err := os.ReadDir(filepath.Join(n.cfg.Dir, TempDir)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestGuardEndsAlone: what reads a disk goes on when the look at the room is over.
func TestGuardEndsAlone(t *testing.T) {
	w := working{"/x", func(string) (uint64, uint64, error) { return 4000, 4000, nil }}
	ctx, stop := w.guard(t.Context())
	stop()
	if ctx.Err() != nil {
		t.Errorf("what was begun ended with the guard: %v", context.Cause(ctx))
	}
}
