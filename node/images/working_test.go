package images

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
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

// TestGuestsGoFirst: long work on an image leaves the last places at the origin to guests.
func TestGuestsGoFirst(t *testing.T) {
	n := newWorld(t)
	const inFlight = 4
	places, taken := budget.New(budget.Limits{InFlight: inFlight}), 0
	op, err := n.begin("verify", "debian", func(ctx context.Context, _ *operations.Operation) error {
		brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		for {
			r, err := places.Take(brief)
			if err != nil {
				return nil // no place is left to it
			}
			defer r.End()
			taken++
		}
	})
	if err == nil {
		_, err = n.cfg.Operations.Wait(t.Context(), op.ID)
	}
	if err != nil || taken < 1 || taken >= inFlight {
		t.Errorf("%d of %d places were taken, %v", taken, inFlight, err)
	}
}

// TestImportEndsBeforeTheDiskIsFull has a data folder on a disk of its own. What is
// inflated does not say before how large it is.
func TestImportEndsBeforeTheDiskIsFull(t *testing.T) {
	n := newWorld(t)
	n.cfg.Dir = small(t)
	source := t.TempDir()
	large := filepath.Join(source, "large")
	if err := errors.Join(os.Mkdir(filepath.Join(n.cfg.Dir, TempDir), 0o700), os.WriteFile(large, []byte(strings.Repeat("large", 20<<20)), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("zstd", "-q", large).CombinedOutput(); err != nil {
		t.Fatalf("zstd: %v: %s", err, out)
	}
	for _, from := range []string{".", "large.zst"} {
		view, err := n.Import(t.Context(), "big", ImportRequest{Options: convert.Options{Path: filepath.Join(source, from)}})
		if err != nil {
			t.Fatal(err)
		}
		view, err = n.cfg.Operations.Wait(t.Context(), view.ID)
		if err != nil || !strings.Contains(view.Error, content.ErrNoSpace.Error()) || !strings.Contains(view.Error, "are free; make room there") {
			t.Errorf("%s: %v, %q, want ErrNoSpace and what to do", from, err, view.Error)
		}
		free, total, err := cache.DiskFree(n.cfg.Dir)
		if err != nil || free < total/workingShare {
			t.Errorf("%s: %d of %d are free (%v)", from, free, total, err)
		}
		if left, err := os.ReadDir(filepath.Join(n.cfg.Dir, TempDir)); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v, %v", from, left, err)
		}
	}
}

// small is a folder on a disk of 64 MiB of its own.
func small(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
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

// TestStreamsLeaveTheVolumesTheirPart: what comes through a pipe ends before it has
// filled the disk.
func TestStreamsLeaveTheVolumesTheirPart(t *testing.T) {
	dir := small(t)
	f, err := os.Create(filepath.Join(dir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(&convert.Sparse{File: f, Room: WorkingRoom(dir)}, strings.NewReader(strings.Repeat("much", 25<<20)))
	if err := errors.Join(err, f.Close()); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("%v, want ErrNoSpace", err)
	}
	if free, total, err := cache.DiskFree(dir); err != nil || free < total/workingShare {
		t.Errorf("%d of %d are free (%v)", free, total, err)
	}
}
