package volume

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// sparse makes a journal of full segments of writes of 4 KiB all over a disk. Their data and
// heads are holes: a start reads the tables only.
func sparse(t testing.TB, cfg Config, count int) {
	t.Helper()
	must(t, os.Remove(filepath.Join(cfg.Dir, journal.NoteName)))
	rng := rand.New(rand.NewPCG(1, 1))
	const each = segmentMax / (extents.Unit + extents.EntryHeader + 4)
	var last journal.Note
	for n := range uint64(count) {
		h := journal.Header{Volume: cfg.ID, Epoch: cfg.Epoch, Number: n + 1, After: content.Position{Number: n, Seq: n * each}}
		f, err := os.Create(filepath.Join(cfg.Dir, h.Name()))
		must(t, err)
		_, err = f.Write(h.Encode())
		must(t, err)
		var m extents.Map
		off := int64(journal.HeaderSize)
		for range each {
			x := journal.DataEntry(rng.Int64N(cfg.Size/extents.Unit)*extents.Unit, extents.Unit)
			m.Put(x.Extent(0, off, binary.LittleEndian.AppendUint32(nil, 1)))
			off += x.Size()
		}
		b := journal.Table{Seq: (n + 1) * each, Extents: m.Of(0, journal.TableMax)}.Encode(journal.Seed(cfg.ID, h.Number), off)
		_, err = f.WriteAt(b, off)
		must(t, errors.Join(err, f.Close()))
		last = journal.Note{Number: n + 1, Length: off + int64(len(b)), Seq: (n + 1) * each}
	}
	must(t, os.WriteFile(filepath.Join(cfg.Dir, journal.NoteName), append(make([]byte, journal.NoteSlot), last.Encode(journal.Seed(cfg.ID, 0))...), 0o600))
}

// TestReplayOfMoreThanMemory opens a journal whose map is larger than may be in memory: it
// is spilled, and says the same as one that is not.
func TestReplayOfMoreThanMemory(t *testing.T) {
	cfg := config(create(t))
	cfg.Size, cfg.ReadOnly = 8<<30, true // nobody compacts it
	sparse(t, cfg, 8)
	want := ranges(t, cfg)
	cfg.Memory = 1 << 20
	v, err := Open(cfg)
	must(t, err)
	memory := v.open.bytes()
	for _, l := range v.layers {
		memory += l.bytes()
	}
	if memory > cfg.Memory {
		t.Errorf("the map takes %d bytes of memory, and may take %d", memory, cfg.Memory)
	}
	must(t, v.Close())
	if got := ranges(t, cfg); !slices.Equal(got, want) {
		t.Errorf("%d ranges, and in memory %d", len(got), len(want))
	}
}

// ranges opens a volume and returns where its newest bytes lie.
func ranges(t *testing.T, cfg Config) (out []extents.Extent) {
	t.Helper()
	v, err := Open(cfg)
	must(t, err)
	next := flattened(append([]*layer{v.open}, v.layers...), 0)
	for {
		e, ok, err := next()
		must(t, err)
		if !ok {
			must(t, v.Close())
			return out
		}
		out = append(out, e)
	}
}

// BenchmarkReplay opens a journal of 10 GiB of writes of 4 KiB all over a disk of 64 GiB,
// none of which is folded, and reports the memory that it takes from the system.
func BenchmarkReplay(b *testing.B) {
	cfg := config(create(b))
	cfg.Size, cfg.ReadOnly = 64<<30, true
	sparse(b, cfg, 160)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	used := processorTime(b)
	for b.Loop() {
		begun := time.Now()
		v, err := Open(cfg)
		must(b, err)
		b.ReportMetric(float64(v.Stats().Dirty>>20), "MiB")
		b.ReportMetric(time.Since(begun).Seconds(), "s/open")
		must(b, v.Close())
	}
	b.ReportMetric((processorTime(b)-used).Seconds()/float64(b.N), "cpu-s/op") // others may be at work
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapSys-before.HeapSys)/(1<<20), "MiB-heap")
}
