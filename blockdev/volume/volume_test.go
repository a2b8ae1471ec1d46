package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

const testChunk = 32 << 10

// image is a Source in memory: some chunks, the others holes.
type image struct {
	chunks map[uint64][]byte
	prompt bool // answers without waiting
}

func newImage(size int64) *image {
	m := &image{map[uint64][]byte{}, true}
	rng := rand.NewChaCha8([32]byte{5})
	for i := range uint64((size + testChunk - 1) / testChunk) {
		if i%3 != 1 {
			m.chunks[i] = make([]byte, testChunk)
			rng.Read(m.chunks[i])
		}
	}
	return m
}

func (m *image) TryReadChunk(index uint64, off int, p []byte) bool {
	return m.prompt && m.ReadChunk(context.Background(), index, off, p) == nil
}

func (m *image) ReadChunk(_ context.Context, index uint64, off int, p []byte) error {
	if off+len(p) > testChunk {
		return content.ErrInvalid
	}
	clear(p)
	if c := m.chunks[index]; c != nil {
		copy(p, c[off:])
	}
	return nil
}

func (m *image) NextData(_ context.Context, index uint64) (start, end uint64, err error) {
	for ; index < 1000; index++ {
		if m.chunks[index] != nil {
			for end = index + 1; m.chunks[end] != nil; end++ {
			}
			return index, end, nil
		}
	}
	return 0, 0, io.EOF
}

// The disk of tests is larger than its source, whose end is inside a chunk.
const (
	testSize   = 40 * testChunk
	sourceSize = 30*testChunk - 5*extents.SectorSize
)

func create(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "v")
	must(t, Create(dir, testID()))
	return dir
}

func testID() content.VolumeID { return content.VolumeID{1, 2} }

// segmentName is the file of a segment of tests.
func segmentName(number uint64) string { return journal.Header{Epoch: 1, Number: number}.Name() }

// config is of a volume of tests without a source.
func config(dir string) Config { return Config{Dir: dir, ID: testID(), Size: testSize, Epoch: 1} }

// sourced is of one with a source.
func sourced(dir string, src Source) Config {
	cfg := config(dir)
	cfg.Source, cfg.SourceSize, cfg.ChunkSize = src, sourceSize, testChunk
	return cfg
}

func readOnly(cfg Config) Config {
	cfg.ReadOnly = true
	return cfg
}

func open(t testing.TB, dir string, src Source) *Volume {
	t.Helper()
	v, err := Open(sourced(dir, src))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func blank(src *image) []byte {
	b := make([]byte, testSize)
	for i, c := range src.chunks {
		copy(b[int64(i)*testChunk:sourceSize], c)
	}
	return b
}

func expect(t rapidT, v *Volume, want []byte, off, n int64) {
	t.Helper()
	p := bytes.Repeat([]byte{0xee}, int(n))
	if err := v.ReadAt(context.Background(), p, off); err != nil {
		t.Fatalf("read %d at %d: %v", n, off, err)
	}
	if !bytes.Equal(p, want[off:off+n]) {
		t.Fatalf("read %d at %d: other bytes", n, off)
	}
	q := bytes.Repeat([]byte{0xee}, int(n))
	if v.TryReadAt(q, off) && !bytes.Equal(q, want[off:off+n]) {
		t.Fatalf("try read %d at %d: other bytes", n, off)
	}
	w := window(bytes.Repeat([]byte{0xee}, int(n)))
	if v.TryReadTo(w, len(w), off) && !bytes.Equal(w, want[off:off+n]) {
		t.Fatalf("try read %d at %d to a writer: other bytes", n, off)
	}
}

// window is the data of a request that is given in pieces.
type window []byte

func (w window) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(w)) {
		return 0, errors.New("beyond the end of the request")
	}
	return copy(w[off:], p), nil
}

type rapidT interface {
	Helper()
	Fatalf(string, ...any)
}

// TestModel runs operations on a volume and on bytes in memory.
func TestModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		src := newImage(sourceSize)
		dir := create(t)
		v := open(t, dir, src)
		want := blank(src)
		span := func() (off, n int64) {
			start := rapid.Int64Range(0, testSize/extents.SectorSize-1).Draw(r, "sector")
			most := min(testSize/extents.SectorSize-start, 3*(1<<20)/extents.SectorSize)
			return start * extents.SectorSize, rapid.OneOf(rapid.Int64Range(1, min(most, 20)), rapid.Int64Range(1, most)).Draw(r, "sectors") * extents.SectorSize
		}
		r.Repeat(map[string]func(*rapid.T){
			"write": func(r *rapid.T) {
				off, n := span()
				p := make([]byte, n)
				rand.NewChaCha8([32]byte{byte(rapid.IntRange(1, 255).Draw(r, "seed"))}).Read(p)
				fua := rapid.Bool().Draw(r, "fua")
				if fua || !v.TryWriteFrom(bytes.NewReader(p), len(p), off) {
					if err := v.WriteAt(t.Context(), p, off, fua); err != nil {
						r.Fatal(err)
					}
				}
				copy(want[off:], p)
			},
			"batch": func(r *rapid.T) {
				var ws []blockdev.Write
				for range rapid.IntRange(1, 70).Draw(r, "writes") {
					off, n := span()
					p := make([]byte, min(n, 40*extents.SectorSize))
					rand.NewChaCha8([32]byte{byte(rapid.IntRange(1, 255).Draw(r, "seed"))}).Read(p)
					ws = append(ws, blockdev.Write{Data: p, Offset: off})
				}
				for len(ws) > 0 {
					n := v.TryWriteBatch(ws)
					if n == 0 {
						n = 1
						must(r, v.WriteAt(t.Context(), ws[0].Data, ws[0].Offset, false))
					}
					for _, w := range ws[:n] {
						copy(want[w.Offset:], w.Data)
					}
					ws = ws[n:]
				}
			},
			"zero": func(r *rapid.T) {
				off, n := span()
				if err := v.Zero(t.Context(), off, n, rapid.Bool().Draw(r, "keep"), false); err != nil {
					r.Fatal(err)
				}
				clear(want[off : off+n])
			},
			"read":  func(r *rapid.T) { off, n := span(); expect(r, v, want, off, n) },
			"flush": func(r *rapid.T) { must(r, v.Flush(t.Context())) },
			"wait":  func(*rapid.T) { src.prompt = !src.prompt },
			"reopen": func(r *rapid.T) {
				must(r, v.Close())
				v = open(t, dir, src)
			},
			"extents": func(r *rapid.T) { checkExtents(r, v, want) },
		})
		expect(r, v, want, 0, testSize)
		must(r, v.Close())
	})
}

func must(t rapidT, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// checkExtents: holes read as zeros, neighbours differ, and all is covered.
func checkExtents(t rapidT, v *Volume, want []byte) {
	t.Helper()
	var off int64
	for off < testSize {
		list, err := v.Extents(context.Background(), nil, off, testSize-off, 3)
		if err != nil || len(list) == 0 || len(list) > 3 {
			t.Fatalf("extents at %d: %v, %v", off, list, err)
		}
		for i, e := range list {
			if i > 0 && list[i-1].State == e.State || e.Length <= 0 {
				t.Fatalf("extents at %d: %v", off, list)
			}
			if e.State != blockdev.Data && !bytes.Equal(want[off:off+e.Length], make([]byte, e.Length)) {
				t.Fatalf("%d bytes at %d are said to be zeros", e.Length, off)
			}
			off += e.Length
		}
	}
}

// TestZerosThatKeepTheirSpace are no hole, after a restart either: by the entries of an
// open segment and by the table of a full one.
func TestZerosThatKeepTheirSpace(t *testing.T) {
	for name, more := range map[string]int{"entry": 0, "table": 4} {
		dir := create(t)
		cfg := config(dir)
		cfg.SegmentSize = 2 * extents.Unit
		v, err := Open(cfg)
		must(t, err)
		want := []blockdev.Extent{{Length: extents.Unit, State: blockdev.Data}, {Length: 2 * extents.Unit, State: blockdev.Zeros}, {Length: testSize - 3*extents.Unit, State: blockdev.Hole}}
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4*extents.Unit), 0, false))
		must(t, v.Zero(t.Context(), extents.Unit, 2*extents.Unit, true, true))
		must(t, v.Zero(t.Context(), 3*extents.Unit, extents.Unit, false, true))
		for range more { // segments, so that those before are full
			must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, extents.Unit), 0, true))
		}
		for _, when := range []string{"at once", "after a restart"} {
			got, err := v.Extents(t.Context(), nil, 0, testSize, 10)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s, %s: %v, %v, want %v", name, when, got, err, want)
			}
			must(t, v.Close())
			v, err = Open(cfg)
			must(t, err)
		}
		must(t, v.Close())
	}
}

// encoded returns an entry with its data.
func encoded(e journal.Entry, seed uint32, data []byte) []byte {
	b := make([]byte, e.Size())
	copy(b[e.DataOffset():], data)
	journal.SumUnits(b[extents.EntryHeader:e.DataOffset()], data)
	e.Seal(seed, b)
	return b
}

// written makes a volume with writes and flushes and returns the bytes that the
// disk has, and those that it had at each flush.
func written(t *testing.T, entries int) (dir string, want []byte, flushed map[int][]byte) {
	t.Helper()
	src := newImage(sourceSize)
	dir, want, flushed = create(t), blank(src), map[int][]byte{}
	v := open(t, dir, src)
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range entries {
		off := int64(rng.IntN(testSize/extents.SectorSize-40)) * extents.SectorSize
		p := bytes.Repeat([]byte{byte(i + 1)}, (1+rng.IntN(20))*extents.SectorSize)
		must(t, v.WriteAt(t.Context(), p, off, false))
		copy(want[off:], p)
		if i%10 == 9 {
			must(t, v.Flush(t.Context()))
			flushed[i] = slices.Clone(want)
		}
	}
	must(t, v.Close())
	return dir, want, flushed
}

// TestFlippedBitIsNeverAShorterJournal flips one bit at a time all over a journal
// that was closed cleanly: a start either refuses and says where, or gives every
// byte as it was. Opened to read only, all but what is lost is there.
func TestFlippedBitIsNeverAShorterJournal(t *testing.T) {
	dir, want, _ := written(t, 60)
	path := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mark := len(whole) - extents.EntryHeader
	rng := rand.New(rand.NewPCG(1, 2))
	for at := 0; at < mark; at += 1 + rng.IntN(len(whole)/400) {
		b := slices.Clone(whole)
		b[at] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(sourced(dir, newImage(sourceSize)))
		var lost *CorruptError
		if !errors.As(err, &lost) || !errors.Is(err, content.ErrCorrupt) {
			t.Fatalf("byte %d of %d flipped: %v, want a CorruptError", at, len(whole), err)
		}
		v, err := Open(readOnly(sourced(dir, newImage(sourceSize))))
		if err != nil {
			t.Fatalf("byte %d: read-only: %v", at, err)
		}
		wrong := 0
		p := make([]byte, extents.SectorSize)
		for off := int64(0); off < testSize; off += extents.SectorSize {
			if err := v.ReadAt(t.Context(), p, off); err == nil && !bytes.Equal(p, want[off:off+extents.SectorSize]) {
				wrong++
			}
		}
		if (lost.Length > 0 || at < journal.HeaderSize) && wrong > 0 { // a head holds no data
			t.Fatalf("byte %d flipped: %d sectors have other bytes, and the lost range was known", at, wrong)
		}
		must(t, v.Close())
	}
}

// TestFlippedBitBeforeAKill flips bits in what was flushed last before the process
// was killed, with nothing behind it but what the flush itself has left.
func TestFlippedBitBeforeAKill(t *testing.T) {
	dir := create(t)
	v := open(t, dir, newImage(sourceSize))
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 2*extents.Unit), 0, false))
	must(t, v.Flush(t.Context()))
	whole, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	must(t, err)
	must(t, v.Close())
	for at := journal.HeaderSize; at < len(whole)-extents.EntryHeader; at += 61 {
		b := slices.Clone(whole)
		b[at] ^= 4
		must(t, os.WriteFile(filepath.Join(dir, segmentName(1)), b, 0o600))
		var lost *CorruptError
		if _, err := Open(config(dir)); !errors.As(err, &lost) || lost.Seq != 1 {
			t.Fatalf("byte %d flipped: %v, want a CorruptError of entry 1", at, err)
		}
	}
}

// TestFlushesWithoutWritesAddNothing: a guest may flush as often as it likes.
func TestFlushesWithoutWritesAddNothing(t *testing.T) {
	v := open(t, create(t), newImage(sourceSize))
	must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, true))
	size := v.chain[0].size
	for range 10 {
		must(t, v.Flush(t.Context()))
	}
	if v.chain[0].size != size {
		t.Errorf("%d bytes were added", v.chain[0].size-size)
	}
	must(t, v.Close())
}

// TestTornTailIsCutOff cuts a journal that was never closed at every place: what
// is left is the state after some entry, no older than the last flush before the
// cut that a later entry tells of.
func TestTornTailIsCutOff(t *testing.T) {
	dir, _, _ := written(t, 40)
	path := filepath.Join(dir, segmentName(1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole = whole[:len(whole)-extents.EntryHeader] // without the mark of the clean end
	last, seq := int64(0), uint64(0)
	for off := int64(journal.HeaderSize); off < int64(len(whole)); {
		e, err := journal.DecodeEntry(journal.Seed(testID(), 1), whole[off:])
		if err != nil {
			t.Fatal(err)
		}
		last, seq, off = off, e.Seq, off+e.Size()
	}
	for cut := last; cut < int64(len(whole)); cut += 97 {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, os.WriteFile(filepath.Join(dir, journal.NoteName), journal.Note{}.Encode(journal.Seed(testID(), 0)), 0o600)) // nothing was ever synced
		v := open(t, dir, newImage(sourceSize))
		if v.seq != seq-1 {
			t.Fatalf("cut at %d: the last entry is %d, want %d", cut, v.seq, seq-1)
		}
		must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, true))
		must(t, v.Close())
		os.Remove(filepath.Join(dir, segmentName(2)))
	}
}

func TestOneProcessAVolume(t *testing.T) {
	dir := create(t)
	v := open(t, dir, newImage(sourceSize))
	if _, err := Open(config(dir)); !errors.Is(err, content.ErrConflict) {
		t.Errorf("second Open: %v, want ErrConflict", err)
	}
	must(t, v.Close())
	if err := v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false); !errors.Is(err, content.ErrClosed) {
		t.Errorf("write after Close: %v, want ErrClosed", err)
	}
	if _, err := Open(config(filepath.Join(dir, "absent"))); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("no folder: %v, want ErrNotFound", err)
	}
	odd := config(dir)
	odd.Size = 100
	if _, err := Open(odd); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a disk of 100 bytes: %v, want ErrInvalid", err)
	}
}

func TestReadOnlyRefusesWrites(t *testing.T) {
	dir := create(t)
	v, err := Open(readOnly(config(dir)))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("write: %v, want ErrReadOnly", err)
	}
}

func BenchmarkWrite4K(b *testing.B) {
	v := open(b, create(b), newImage(sourceSize))
	defer v.Close()
	p := make([]byte, extents.Unit)
	rng := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(extents.Unit)
	for b.Loop() {
		if err := v.WriteAt(b.Context(), p, int64(rng.IntN(testSize/extents.Unit))*extents.Unit, false); err != nil {
			b.Fatal(err)
		}
	}
}

// TestBrokenRequest: a request whose data can't be had, or given, is left to the
// caller, and nothing of it is written.
func TestBrokenRequest(t *testing.T) {
	v := open(t, create(t), nil)
	defer v.Close()
	old := bytes.Repeat([]byte{1}, 3*extents.Unit)
	must(t, v.WriteAt(t.Context(), old, 0, false))
	if v.TryWriteFrom(bytes.NewReader(make([]byte, 2*extents.Unit)), 3*extents.Unit, 0) {
		t.Error("a write was taken of which a part is missing")
	}
	expect(t, v, old, 0, 3*extents.Unit)
	if v.TryReadTo(make(window, 2*extents.Unit), 3*extents.Unit, 0) {
		t.Error("a read was answered that nobody took")
	}
	must(t, v.WriteAt(t.Context(), old[:extents.Unit], extents.Unit, false))
	expect(t, v, old, 0, 3*extents.Unit)
}
