package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// taken is what the folder takes, in bytes.
func taken(t rapidT, dir string) (n int64) {
	t.Helper()
	files, err := os.ReadDir(dir)
	must(t, err)
	for _, f := range files {
		if info, err := f.Info(); err == nil { // it may have gone meanwhile
			n += info.Size()
		}
	}
	return n
}

// TestRewrittenDiskStaysSmall rewrites a disk 50 times with nobody folding, in order and at
// random: what the journal takes is bounded all the time, and the bytes are the last ones.
// At full size that is 1 GiB in 3 GiB; here the disk and the segments are 1,024 times smaller.
func TestRewrittenDiskStaysSmall(t *testing.T) {
	const size, segment = 1 << 20, 64 << 10
	for name, place := range map[string]func(i int) int64{
		"in order": func(i int) int64 { return int64(i) % (size / extents.Unit) },
		"random":   func(int) int64 { return rand.Int64N(size / extents.Unit) },
	} {
		cfg := config(create(t))
		cfg.Size, cfg.SegmentSize = size, segment
		v, err := Open(cfg)
		must(t, err)
		want, most := make([]byte, size), int64(0)
		p := make([]byte, extents.Unit)
		for i := range 50 * size / extents.Unit {
			off := place(i) * extents.Unit
			p[0], p[extents.Unit-1] = byte(i), byte(i>>8)
			must(t, v.WriteAt(t.Context(), p, off, false))
			copy(want[off:], p)
			if i%100 == 0 {
				most = max(most, taken(t, cfg.Dir))
			}
		}
		if allowed := int64(2*size*102/100 + (slackSegments+1)*segment); most > allowed { // 1 % are heads and sums; a segment is filled while others are compacted
			t.Errorf("%s: it took up to %d KiB, and may take %d", name, most>>10, allowed>>10)
		}
		expect(t, v, want, 0, size)
		must(t, v.Close())
		v, err = Open(cfg)
		must(t, err)
		expect(t, v, want, 0, size)
		must(t, v.Close())
	}
}

// TestNobodyWaitsForAReadOfTheDisk has a read that waits for the disk: others write, flush
// and read meanwhile, the journal is compacted, and the root changes.
func TestNobodyWaitsForAReadOfTheDisk(t *testing.T) {
	v, err := Open(smallSegments(create(t), newImage(sourceSize)))
	must(t, err)
	old := bytes.Repeat([]byte{1}, extents.Unit)
	must(t, v.WriteAt(t.Context(), old, 0, true))
	waits, goOn := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	v.cfg.Step = func(name string) {
		if name == "read" && first.CompareAndSwap(false, true) {
			close(waits)
			<-goOn
		}
	}
	var group errgroup.Group
	got := make([]byte, extents.Unit)
	group.Go(func() error { return v.ReadAt(context.Background(), got, 0) })
	<-waits
	now := bytes.Repeat([]byte{2}, extents.Unit)
	for i := range 40 {
		must(t, v.WriteAt(t.Context(), now, int64(i%2)*extents.Unit, i%10 == 0))
	}
	must(t, v.absorb())
	v.tend()
	p, err := v.Seal(t.Context())
	must(t, err)
	must(t, v.Rebase(flat(bytes.Repeat([]byte{3}, testSize)), testSize, testChunk, p))
	if len(segments(t, v.cfg.Dir)) > 0 {
		t.Error("the journal was not cut")
	}
	expect(t, v, bytes.Repeat([]byte{3}, testSize), 0, testSize)
	close(goOn)
	must(t, group.Wait())
	if !bytes.Equal(got, old) { // as it was when the read began
		t.Errorf("read %x", got[:4])
	}
	must(t, v.Close())
}

// TestWritesThatComeTogether wait behind one that is slow: they go in one write.
func TestWritesThatComeTogether(t *testing.T) {
	v := open(t, create(t), nil)
	must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false))
	var appends atomic.Int32
	v.cfg.Step = func(name string) {
		if name == "append" {
			appends.Add(1)
		}
	}
	v.take()
	var group errgroup.Group
	const writers = 32
	want := make([]byte, writers*extents.Unit)
	for i := range int64(writers) {
		p := bytes.Repeat([]byte{byte(i + 1)}, extents.Unit)
		copy(want[i*extents.Unit:], p)
		group.Go(func() error { return v.WriteAt(context.Background(), p, i*extents.Unit, false) })
	}
	await(t, "writers that wait", func() bool {
		v.turns.mu.Lock()
		defer v.turns.mu.Unlock()
		return len(v.turns.waiting) == writers
	})
	v.turns.pass()
	must(t, group.Wait())
	if n := appends.Load(); n != 1 {
		t.Errorf("%d writes of the file", n)
	}
	expect(t, v, want, 0, int64(len(want)))
	must(t, v.Close())
	v = open(t, v.cfg.Dir, nil)
	expect(t, v, want, 0, int64(len(want)))
	must(t, v.Close())
}

// TestLittleSpace fills the disk of a volume: below a tenth that is free writes go at the
// rate at which space comes free, below a twentieth they fail after 30 s; what is no write
// always passes, and with room again all goes on.
func TestLittleSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var free atomic.Int64 // per mille
		free.Store(500)
		cfg := smallSegments(create(t), nil)
		cfg.Free = func() float64 { return float64(free.Load()) / 1000 }
		v, err := Open(cfg)
		must(t, err)
		p := bytes.Repeat([]byte{1}, extents.Unit)
		write := func() (time.Duration, error) {
			begun := time.Now()
			err := v.WriteAt(t.Context(), p, 0, false)
			return time.Since(begun), err
		}
		if took, err := write(); err != nil || took > 0 {
			t.Errorf("with space: %v, %v", took, err)
		}
		v.pressure.allowance.Store(0)
		free.Store(40)
		if v.TryWriteFrom(bytes.NewReader(p), extents.Unit, 0) {
			t.Error("a write passes on a full disk")
		}
		if took, err := write(); !errors.Is(err, content.ErrNoSpace) || took != spaceWait || !v.Stats().Full {
			t.Errorf("on a full disk: %v, %v", took, err)
		}
		must(t, v.Flush(t.Context()))
		must(t, v.Zero(t.Context(), 0, extents.Unit, false, true))
		expect(t, v, make([]byte, extents.Unit), 0, extents.Unit)
		free.Store(70)
		if took, err := write(); err != nil || took != spaceWait { // nothing comes free
			t.Errorf("on a disk that is nearly full: %v, %v", took, err)
		}
		v.pressure.freed.Store(2 * extents.Unit)
		for range 2 {
			if took, err := write(); err != nil || took > 0 {
				t.Errorf("of what came free: %v, %v", took, err)
			}
		}
		free.Store(40)
		var group errgroup.Group
		group.Go(func() error { _, err := write(); return err })
		synctest.Wait()
		free.Store(500) // somebody has made room
		must(t, group.Wait())
		if v.Stats().Full {
			t.Error("it is still said to be full")
		}
		must(t, v.Close())
	})
}

// TestCompactsWhereSpaceIsShort has a journal that is in its bounds, and a disk that is not.
func TestCompactsWhereSpaceIsShort(t *testing.T) {
	cfg := smallSegments(create(t), nil)
	short := false
	cfg.Free = func() float64 {
		if short {
			return 0.15
		}
		return 0.5
	}
	v, err := Open(cfg)
	must(t, err)
	for i := range 100 {
		must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), int64(i%70)*extents.Unit, false))
	}
	v.work.Wait()
	v.tend()
	before := v.Stats().Disk
	short = true
	v.tend()
	if after := v.Stats(); after.Disk >= before || after.Disk > after.Dirty+after.Dirty/8+4*cfg.SegmentSize {
		t.Errorf("it took %d, and takes %+v", before, after)
	}
	must(t, v.Close())
	if left, err := filepath.Glob(filepath.Join(cfg.Dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestFailedCompactionLeavesNothing takes a merged segment away before it has its name: the
// map that was made of it goes too, which was spilled, and the next one finds its room.
func TestFailedCompactionLeavesNothing(t *testing.T) {
	cfg := smallSegments(create(t), nil)
	cfg.Memory = 16 << 10 // a page of the map is more than half
	v, err := Open(cfg)
	must(t, err)
	v.tended.Store(true) // what tends is called here
	for i := range 27 {  // enough to be made smaller, and not so much that writes wait for that
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i)}, extents.Unit), int64(i%4)*extents.Unit, false))
	}
	must(t, v.absorb())
	spilled := func() int {
		left, err := filepath.Glob(filepath.Join(cfg.Dir, extents.TempPrefix+"*"))
		must(t, err)
		return len(left)
	}
	failed := 0
	v.cfg.Step = func(step string) {
		if step != "copied" {
			return
		}
		failed++
		merged, _ := filepath.Glob(filepath.Join(cfg.Dir, journal.MergePrefix+"*"))
		for _, name := range merged {
			must(t, os.Remove(name))
		}
	}
	v.tend()
	v.work.Wait()
	if have := spilled(); failed == 0 || have != len(v.layers) {
		t.Errorf("%d compactions failed, and %d files are there for %d layers", failed, have, len(v.layers))
	}
	v.cfg.Step = func(string) {}
	must(t, v.Close())
	if have := spilled(); have > 0 {
		t.Errorf("%d are left", have)
	}
}

// TestNothingGoesOnBehindClose: the folder is not another's before all that goes on beside has
// ended, and a write that comes too late begins nothing more.
func TestNothingGoesOnBehindClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(create(t))
		var looks atomic.Int32
		cfg.Free = func() float64 { looks.Add(1); return compactBelow - 0.01 }
		v, err := Open(cfg)
		must(t, err)
		beside, closed := make(chan struct{}), make(chan error, 1)
		v.work.Go(func() { <-beside })
		go func() { closed <- v.Close() }()
		synctest.Wait()
		if early, err := durable.Lock(filepath.Join(cfg.Dir, "lock")); err == nil {
			t.Errorf("another may open the folder: %v", early.Close())
		}
		close(beside)
		must(t, <-closed)
		must(t, v.Close())
		looks.Store(0)
		if err := v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false); !errors.Is(err, content.ErrClosed) {
			t.Errorf("written: %v", err)
		}
		if v.work.Wait(); looks.Load() != 1 {
			t.Errorf("it is tended: the disk was looked at %d times", looks.Load())
		}
		lock, err := durable.Lock(filepath.Join(cfg.Dir, "lock"))
		must(t, err)
		must(t, lock.Close())
	})
}
