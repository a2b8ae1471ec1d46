package fold

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"lukechampine.com/blake3"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	block    = 4096
	diskSize = 4 << 20
)

var errFailed = errors.New("failed here")

// write is an entry of the journal of the tests.
type write struct {
	Seq   uint64
	Block int64
	Data  []byte
}

// memory is a Journal in memory, which outlives its process.
type memory struct {
	id    content.VolumeID
	epoch uint64
	size  int64

	mu     sync.Mutex
	writes []write // behind base
	end    content.Position
	open   uint64 // entries since the last seal
	base   content.Position
	source volume.Source
	chunk  int
}

func (j *memory) write(at int64, data []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.end.Seq++
	j.open++
	j.writes = append(j.writes, write{j.end.Seq, at, bytes.Clone(data)})
}

func (j *memory) Seal(context.Context) (content.Position, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open > 0 {
		j.end.Number++
		j.open = 0
	}
	return j.end, nil
}

func (j *memory) within(after, through content.Position) map[int64]write {
	out := map[int64]write{}
	for _, w := range j.writes {
		if w.Seq > after.Seq && w.Seq <= through.Seq {
			out[w.Block] = w
		}
	}
	return out
}

func (j *memory) Merge(_ context.Context, w io.Writer, after, through content.Position) (content.SegmentRef, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if after.Seq < j.base.Seq {
		return content.SegmentRef{}, fmt.Errorf("%w: the journal begins behind %v", content.ErrNotFound, after)
	}
	var row []write
	newest := j.within(after, through)
	for _, at := range slices.Sorted(maps.Keys(newest)) {
		row = append(row, newest[at])
	}
	b, err := json.Marshal(row)
	if err == nil {
		_, err = w.Write(b)
	}
	sum := blake3.Sum256(b)
	return content.SegmentRef{Volume: j.id, Epoch: j.epoch, After: after, Through: through, Bytes: int64(len(b)), Sum: [16]byte(sum[:])}, err
}

func (j *memory) Keep(content.Position) error { return nil }

func (j *memory) Release(content.Position) {}

func (j *memory) Changes(after, through content.Position, _ int64) iter.Seq2[blockdev.Range, error] {
	j.mu.Lock()
	defer j.mu.Unlock()
	blocks, gone := slices.Sorted(maps.Keys(j.within(after, through))), after.Seq < j.base.Seq
	return func(yield func(blockdev.Range, error) bool) {
		if gone {
			yield(blockdev.Range{}, fmt.Errorf("%w: the journal begins behind %v", content.ErrNotFound, after))
			return
		}
		for _, at := range blocks {
			if !yield(blockdev.Range{Offset: at * block, Length: block}, nil) {
				return
			}
		}
	}
}

func (j *memory) ReadAsOf(ctx context.Context, p []byte, off int64, through content.Position) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	clear(p)
	if j.source != nil {
		if err := j.source.ReadChunk(ctx, uint64(off/content.ChunkSizeDefault), 0, p); err != nil {
			return err
		}
	}
	for _, w := range j.writes {
		if at := w.Block*block - off; w.Seq <= through.Seq && at >= 0 && at < int64(len(p)) {
			copy(p[at:], w.Data)
		}
	}
	return nil
}

func (j *memory) Rebase(src volume.Source, _ int64, chunkSize int, base content.Position) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if base.Seq < j.base.Seq {
		return fmt.Errorf("%w: the journal begins behind %v", content.ErrNotFound, base)
	}
	j.source, j.chunk, j.base = src, chunkSize, base
	j.writes = slices.DeleteFunc(j.writes, func(w write) bool { return w.Seq <= base.Seq })
	return nil
}

// root reads a root at the origin: a volume.Source.
type root struct {
	r    *pack.Reader
	head pack.Head
}

func (s root) TryReadChunk(uint64, int, []byte) bool { return false }

func (s root) NextData(context.Context, uint64) (uint64, uint64, error) { return 0, 0, io.EOF }

func (s root) ReadChunk(ctx context.Context, index uint64, off int, p []byte) error {
	clear(p)
	top := s.head.Top()
	if top.Node.CID.IsHole() {
		return nil
	}
	n, err := s.r.ReadNode(ctx, s.head.Scope, s.head.Root.Shape().Depth(), top)
	if err != nil {
		return err
	}
	at, ok := n.Page.Child(int(index))
	if !ok {
		return nil
	}
	got, err := s.r.ReadFrames(ctx, []pack.Extent{{CID: n.Node.Entry(int(index)), Location: at}})
	if err == nil {
		copy(p, got[0].Bytes()[off:])
	}
	return err
}

// world is a volume at an origin in memory.
type world struct {
	t       testing.TB
	store   *mem.Bucket
	origin  bucket.Bucket // store, or another that is real
	catalog *catalog.Catalog
	names   *records.Names
	signer  trust.Signer
	journal *memory
	disk    []byte // what the guest wrote

	mu       sync.Mutex // guards what follows
	known    catalog.Record
	body     catalog.Volume
	fault    func(mem.Call) mem.Fault
	at       func(Step) error
	clock    time.Time
	pending  []content.Position
	settled  map[content.Position]catalog.Volume
	bytesPut int64
	tails    *Tails
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, clock: time.Date(2026, 11, 29, 5, 0, 0, 0, time.UTC), disk: make([]byte, diskSize), settled: map[content.Position]catalog.Volume{}}
	w.store = mem.New(t, mem.Config{Now: w.now, MayReadDeleted: true, Fault: func(c mem.Call) mem.Fault {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.fault == nil {
			return mem.Fault{}
		}
		return w.fault(c)
	}})
	return w.foundAt(t, w.store)
}

// foundAt makes the volume at an origin.
func (w *world) foundAt(t testing.TB, origin bucket.Bucket) *world {
	t.Helper()
	w.origin = origin
	key := trust.NewPrivateKey()
	mesh := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "a"}, w.clock)
	if err != nil {
		t.Fatal(err)
	}
	w.signer = trust.Signer{Key: key, Chain: chain}
	if w.catalog, err = catalog.New(catalog.Config{Bucket: w.origin, Verifier: trust.NewVerifier(mesh.Public()), Signer: w.signer, Now: w.now}); err != nil {
		t.Fatal(err)
	}
	here := func() *catalog.Catalog { return w.catalog }
	w.names, err = records.New(records.Config{Dir: t.TempDir(), Reader: here, Writer: here, Lost: func(error) {}, Verifier: trust.NewVerifier(mesh.Public()), Signer: w.signer,
		Learn: func(records.Known) {}, Forget: func(content.CID, content.Scope) {}, Codec: content.NewCodec(), Now: w.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.names.Close() })
	w.journal = &memory{id: content.VolumeID{7}, epoch: 1, size: diskSize}
	w.body = catalog.Volume{ID: w.journal.id, Size: diskSize, Epoch: 1, Incarnation: 1, Holder: key.Public(), State: catalog.Attached, Policy: catalog.PolicyLocal}
	b, err := w.body.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	if w.known, err = w.names.Commit(t.Context(), catalog.Change{Kind: content.KindVolume, Name: "disk", Farm: "a", Body: b}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

// failing sets what goes wrong at the store; nil for nothing.
func (w *world) failing(f func(mem.Call) mem.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

func (w *world) record() catalog.Volume {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.body
}

// revise is what a node does, without an end of tries.
func (w *world) revise(ctx context.Context, change func(*catalog.Volume) error) error {
	codec := content.NewCodec()
	for {
		w.mu.Lock()
		base, body := w.known, w.body
		w.mu.Unlock()
		body.Segments = slices.Clone(body.Segments)
		was := body.Through()
		if err := change(&body); err != nil {
			return err
		}
		if body.Through().Seq < was.Seq {
			w.t.Errorf("a record that had all up to %v has it up to %v", was, body.Through())
		}
		b, err := body.Encode(codec)
		if err != nil {
			return err
		}
		r, err := w.names.Commit(ctx, catalog.Change{Kind: content.KindVolume, Name: "disk", Farm: "a", Base: &base, Body: b, Since: body.Since})
		var taken *catalog.TakenError
		switch {
		case err == nil:
			w.learn(r, body)
			return nil
		case !errors.As(err, &taken):
			return err
		}
		now, err := catalog.DecodeVolume(codec, taken.Current.Body)
		if err != nil {
			return err
		}
		if now.Epoch != body.Epoch || now.Incarnation != body.Incarnation {
			return content.ErrFenced
		}
		w.learn(taken.Current, now)
	}
}

func (w *world) learn(r catalog.Record, body catalog.Volume) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known, w.body = r, body
}

// crash ends a fold at a step, as a kill does.
type crash struct{ error }

// killable is a Fold whose Run ends with the error of a crash.
type killable struct{ *Fold }

func (f killable) Run(ctx context.Context, want Want) (err error) {
	defer func() {
		switch why := recover().(type) {
		case nil:
		case crash:
			err = why.error
		default:
			panic(why)
		}
	}()
	return f.Fold.Run(ctx, want)
}

func (w *world) fold() killable { return killable{New(w.config())} }

func (w *world) config() Config {
	return Config{
		Journal: w.journal, Bucket: w.bucket, Record: w.record, Revise: w.revise, Tails: func() *Tails { return w.tails },
		Root: func(_ context.Context, head pack.Head) (volume.Source, error) {
			return root{pack.NewReader(w.origin), head}, nil
		},
		SizeAt: func(content.Position) int64 { return content.SizeMax },
		Pending: func() []content.Position {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(w.pending)
		},
		Settle: w.settle, Packs: new(build.Shared),
		Dir: w.t.TempDir(), Scope: content.Farm("a"), Signer: w.signer, Now: w.now, Log: slog.New(slog.DiscardHandler),
		At: func(s Step) {
			if w.at == nil {
				return
			}
			if err := w.at(s); err != nil {
				panic(crash{err})
			}
		},
	}
}

func (w *world) bucket() (bucket.Bucket, error) { return sized{w.origin, w}, nil }

// sized counts what is put.
type sized struct {
	bucket.Bucket
	w *world
}

func (s sized) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	s.w.mu.Lock()
	s.w.bytesPut += body.Size()
	s.w.mu.Unlock()
	return s.Bucket.Put(ctx, key, body, cond)
}

func (w *world) settle(_ context.Context, now catalog.Volume) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.pending) > 0 && w.pending[0].Seq <= now.Through().Seq {
		n := slices.IndexFunc(now.Segments, func(s content.SegmentRef) bool { return s.Through == w.pending[0] })
		if n < 0 && now.Base != w.pending[0] {
			w.t.Errorf("no segment ends at %v, where a snapshot is: %+v", w.pending[0], now)
		}
		now := now
		now.Segments = now.Segments[:n+1]
		w.settled[w.pending[0]] = now
		w.pending = w.pending[1:]
	}
	return nil
}

// snapshot names the end of the journal, unless the record has all, or another does.
func (w *world) snapshot() (content.Position, bool) {
	at, _ := w.journal.Seal(w.t.Context())
	if n := len(w.pending); at.Seq <= w.record().Through().Seq || n > 0 && w.pending[n-1] == at {
		return at, false
	}
	w.pending = append(w.pending, at)
	for range 9 { // it is its owner's, who tries again
		if err := w.revise(w.t.Context(), func(v *catalog.Volume) error { v.Shared = at.Seq; return nil }); err == nil {
			break
		}
	}
	return at, true
}

// write writes a block, on the disk and in the journal.
func (w *world) write(at int64, fill byte) {
	data := bytes.Repeat([]byte{fill}, block)
	copy(w.disk[at*block:], data)
	w.journal.write(at, data)
}

// elsewhere is what another node reads of a record, from the bucket alone.
func (w *world) elsewhere(v catalog.Volume) []byte {
	w.t.Helper()
	out := make([]byte, diskSize)
	if v.Head != nil {
		src := root{pack.NewReader(w.origin), *v.Head}
		for i := range uint64(diskSize / content.ChunkSizeDefault) {
			if err := src.ReadChunk(w.t.Context(), i, 0, out[i*content.ChunkSizeDefault:(i+1)*content.ChunkSizeDefault]); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	for _, s := range InBucket(w.t.Context(), w.bucket, v.Segments) {
		w.replay(s, out)
	}
	return out
}

func (w *world) replay(s journal.AdoptedSegment, out []byte) {
	w.t.Helper()
	o, err := s.Open()
	if err != nil {
		w.t.Fatal(err)
	}
	defer o.Close()
	var row []write
	if err := json.NewDecoder(o).Decode(&row); err != nil {
		w.t.Fatal(err)
	}
	for _, x := range row {
		copy(out[x.Block*block:], x.Data)
	}
}

// whole fails unless another node would read what the guest wrote.
func (w *world) whole() {
	w.t.Helper()
	r, err := w.catalog.Get(w.t.Context(), content.KindVolume, "disk")
	if err != nil {
		w.t.Fatal(err)
	}
	now, err := catalog.DecodeVolume(content.NewCodec(), r.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(w.elsewhere(now), w.disk) {
		w.t.Fatalf("another node reads other bytes than the guest wrote; the record: %+v", now)
	}
	for at, v := range w.settled {
		if v.Through() != at {
			w.t.Errorf("a snapshot of %v has all up to %v", at, v.Through())
		}
		w.elsewhere(v)
	}
}
