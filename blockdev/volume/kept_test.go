package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// smallSegments has a journal of many segments after few writes.
func smallSegments(dir string, src Source) Config {
	cfg := sourced(dir, src)
	cfg.SegmentSize = 32 << 10
	return cfg
}

func segments(t rapidT, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	must(t, err)
	return names
}

// TestOverwrittenSegmentsGo writes the same range again and again, with and without
// flushes: the journal stays small, here and over a restart, and holds the last bytes.
func TestOverwrittenSegmentsGo(t *testing.T) {
	for _, flush := range []bool{true, false} {
		dir := create(t)
		v, err := Open(smallSegments(dir, nil))
		must(t, err)
		want := make([]byte, testSize)
		write := func(i int) {
			p := bytes.Repeat([]byte{byte(i)}, extents.Unit)
			off := int64(i%32) * extents.Unit
			must(t, v.WriteAt(t.Context(), p, off, flush && i%16 == 0))
			copy(want[off:], p)
		}
		for i := range 2000 {
			write(i)
		}
		must(t, v.Zero(t.Context(), 3*extents.Unit, 9*extents.Unit, false, false)) // zeros live as data do
		clear(want[3*extents.Unit : 12*extents.Unit])
		for i := range 2000 {
			if i%32 < 3 || i%32 > 11 {
				write(i)
			}
		}
		must(t, v.Flush(t.Context()))
		v.work.Wait()
		v.tend()
		must(t, v.absorb())
		v.tend()
		v.work.Wait()
		stats := v.Stats()
		var disk int64
		for name, b := range files(t, dir) {
			if name != journal.NoteName {
				disk += int64(len(b))
			}
		}
		if stats.Disk != disk || stats.Dirty != 23*extents.Unit || disk > 2*stats.Dirty+slackSegments*v.cfg.SegmentSize {
			t.Errorf("flushed %v: %+v of %d bytes", flush, stats, disk)
		}
		must(t, v.Close())
		v, err = Open(smallSegments(dir, nil))
		must(t, err)
		expect(t, v, want, 0, testSize)
		must(t, v.Close())
	}
}

// expectAny reads the disk and wants it to be as it was at one time.
func expectAny(t *rapid.T, v *Volume, states [][]byte) {
	t.Helper()
	p := make([]byte, testSize)
	must(t, v.ReadAt(t.Context(), p, 0))
	if !slices.ContainsFunc(states, func(s []byte) bool { return bytes.Equal(p, s) }) {
		t.Fatalf("the disk is as it never was since the last flush (%d states)", len(states))
	}
}

// TestRotInAFullSegment flips bits all over a segment whose table a start reads: the
// start goes on, and what is read is right or refused.
func TestRotInAFullSegment(t *testing.T) {
	dir := create(t)
	v, err := Open(smallSegments(dir, nil))
	must(t, err)
	want := make([]byte, testSize)
	for i := range int64(60) {
		p := bytes.Repeat([]byte{byte(i + 1)}, extents.Unit)
		must(t, v.WriteAt(t.Context(), p, i*extents.Unit, true))
		copy(want[i*extents.Unit:], p)
	}
	must(t, v.Close())
	path := filepath.Join(dir, segmentName(2))
	whole, err := os.ReadFile(path)
	must(t, err)
	_, entries, err := journal.ReadTable(nil, 0, 0)
	if !errors.Is(err, journal.ErrNoTable) {
		t.Fatalf("a table in nothing: %d, %v", entries, err)
	}
	for at := journal.HeaderSize; at < len(whole); at += 1 + len(whole)/150 {
		b := bytes.Clone(whole)
		b[at] ^= 16
		must(t, os.WriteFile(path, b, 0o600))
		v, err := Open(smallSegments(dir, nil))
		if err != nil {
			t.Fatalf("byte %d of %d: %v", at, len(whole), err)
		}
		p := make([]byte, extents.SectorSize)
		for off := int64(0); off < 60*extents.Unit; off += extents.SectorSize {
			if err := v.ReadAt(t.Context(), p, off); err == nil && !bytes.Equal(p, want[off:off+extents.SectorSize]) || err != nil && !errors.Is(err, content.ErrCorrupt) {
				t.Fatalf("byte %d of %d: sector at %d: %v", at, len(whole), off, err)
			}
		}
		must(t, v.Close())
	}
}

// TestReplayTakesLittleMemory opens a journal of one segment that is not full yet, and
// counts what it allocates.
func TestReplayTakesLittleMemory(t *testing.T) {
	dir := create(t)
	v := open(t, dir, nil)
	p := make([]byte, journal.WriteMax)
	for range 48 {
		must(t, v.WriteAt(t.Context(), p, 0, false))
	}
	must(t, v.Close())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	v = open(t, dir, nil)
	runtime.ReadMemStats(&after)
	must(t, v.Close())
	if took := after.TotalAlloc - before.TotalAlloc; took > 2*journal.WindowSize {
		t.Errorf("a journal of 48 MiB takes %d bytes to open", took)
	}
}

// BenchmarkOpen opens a volume of 256 MiB that was rewritten to 4 GiB in random order.
func BenchmarkOpen(b *testing.B) {
	const size, written = 256 << 20, 4 << 30
	cfg := config(create(b))
	cfg.Size = size
	v, err := Open(cfg)
	must(b, err)
	p, rng := make([]byte, extents.Unit), rand.New(rand.NewPCG(1, 1))
	for n := range written / extents.Unit {
		must(b, v.WriteAt(b.Context(), p, int64(rng.IntN(size/extents.Unit))*extents.Unit, n%4096 == 0))
	}
	must(b, v.Close())
	before := processorTime(b)
	for b.Loop() {
		v, err := Open(cfg)
		must(b, err)
		b.ReportMetric(float64(v.Stats().Disk>>20), "MiB")
		must(b, v.Close())
	}
	b.ReportMetric((processorTime(b)-before).Seconds()/float64(b.N), "cpu-s/op") // others may be at work
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkStart opens 32 volumes with journals of 200 MiB each, 16 at once as a node does,
// and reports what memory that has taken from the system.
func BenchmarkStart(b *testing.B) {
	const volumes, journal, atOnce = 32, 200 << 20, 16
	folders := make([]string, volumes)
	p, rng := make([]byte, extents.Unit), rand.New(rand.NewPCG(1, 1))
	each := func(use func(v *Volume)) {
		var group errgroup.Group
		group.SetLimit(atOnce)
		open := make([]*Volume, volumes)
		for i, dir := range folders {
			group.Go(func() (err error) {
				cfg := config(dir)
				cfg.Size = 1 << 30
				open[i], err = Open(cfg)
				return err
			})
		}
		must(b, group.Wait())
		for _, v := range open {
			use(v)
			must(b, v.Close())
		}
	}
	for i := range folders {
		folders[i] = create(b)
	}
	each(func(v *Volume) {
		for n := range journal / extents.Unit {
			must(b, v.WriteAt(b.Context(), p, int64(rng.IntN(1<<30/extents.Unit))*extents.Unit, n%4096 == 0))
		}
	})
	debug.FreeOSMemory()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for b.Loop() {
		each(func(*Volume) {})
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.Sys-before.Sys+before.HeapReleased-min(before.HeapReleased, after.HeapReleased))/(1<<20), "MiB")
}
