package pack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a bucket in memory whose Put can be made to fail.
type memory struct {
	mu      sync.Mutex // guards what follows
	objects map[string][]byte
	gets    int
	puts    int
	lists   int
	// put is asked before each Put: whether it is applied, and what it returns.
	put func(n int, key string) (applied bool, err error)
}

func newMemory() *memory { return &memory{objects: make(map[string][]byte)} }

func (m *memory) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gets++
	b, ok := m.objects[key]
	if !ok {
		return nil, fmt.Errorf("get %s: %w", key, content.ErrNotFound)
	}
	size, off := int64(len(b)), r.Offset
	if off < 0 {
		off = max(0, size+off)
	}
	if off > 0 && off >= size {
		return nil, fmt.Errorf("get %s: %w: range outside", key, content.ErrInvalid)
	}
	end := size
	if r.Length > 0 {
		end = min(size, off+r.Length)
	}
	return &bucket.Object{Info: bucket.Info{Key: key, Size: size}, Body: io.NopCloser(bytes.NewReader(bytes.Clone(b[off:end])))}, ctx.Err()
}

func (m *memory) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if err := ctx.Err(); err != nil {
		return bucket.Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	applied, fault := true, error(nil)
	if m.put != nil {
		applied, fault = m.put(m.puts, key)
	}
	m.puts++
	if !applied {
		return bucket.Info{}, fault
	}
	if _, taken := m.objects[key]; taken && cond.Absent() {
		return bucket.Info{}, fmt.Errorf("put %s: %w", key, bucket.ErrPrecondition)
	}
	b := make([]byte, body.Size())
	if _, err := body.ReadAt(b, 0); err != nil && err != io.EOF {
		return bucket.Info{}, err
	}
	m.objects[key] = b
	return bucket.Info{Key: key, Size: int64(len(b))}, fault
}

func (m *memory) List(_ context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lists++
	var out []bucket.Info
	for _, key := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(key, prefix) && key > after {
			out = append(out, bucket.Info{Key: key, Size: int64(len(m.objects[key]))})
		}
	}
	return func(yield func(bucket.Info, error) bool) {
		for _, info := range out {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

// keys returns the keys with that prefix.
func (m *memory) keys(prefix string) []string {
	var out []string
	for info := range m.List(context.Background(), prefix, "") {
		out = append(out, info.Key)
	}
	return out
}

// change alters a stored object.
func (m *memory) change(key string, f func([]byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key] = f(bytes.Clone(m.objects[key]))
}

const testChunk = content.ChunkSizeMin

// image is a disk for tests: chunks by index, holes left out.
type image struct {
	size   int64
	chunks map[uint64][]byte
}

// chunkOf returns a chunk that depends on seed: half of it random, so that it
// compresses a little.
func chunkOf(seed uint64, size int) []byte {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b[:size/2])
	b[0] = 1
	return b
}

// newImage returns a disk of total chunks of which every step-th holds data, with
// the chunk numbers from seed on.
func newImage(total, step, seed uint64) image {
	im := image{int64(total) * testChunk, make(map[uint64][]byte)}
	for i := uint64(0); i < total; i += step {
		im.chunks[i] = chunkOf(seed+i, testChunk)
	}
	return im
}

func (im image) add(ctx context.Context, b *Builder) error {
	for _, i := range slices.Sorted(maps.Keys(im.chunks)) {
		if err := b.Add(ctx, i, im.chunks[i]); err != nil {
			return err
		}
	}
	return nil
}

// config returns a deterministic BuilderConfig.
func config(to bucket.Bucket, im image) BuilderConfig {
	return BuilderConfig{
		Bucket: to, Scope: content.Mesh(), Size: im.size, ChunkSize: testChunk, PackSize: 256 << 10,
		Now:    func() time.Time { return time.Date(2026, 11, 20, 22, 30, 0, 0, time.UTC) },
		Random: rand.NewChaCha8([32]byte{1}),
	}
}

func build(t testing.TB, cfg BuilderConfig, im image) (Head, Stats) {
	t.Helper()
	h, s, err := tryBuild(t.Context(), cfg, im)
	if err != nil {
		t.Fatal(err)
	}
	return h, s
}

func tryBuild(ctx context.Context, cfg BuilderConfig, im image) (Head, Stats, error) {
	b, err := NewBuilder(ctx, cfg)
	if err != nil {
		return Head{}, Stats{}, err
	}
	defer b.Abort()
	if err := im.add(ctx, b); err != nil {
		return Head{}, Stats{}, err
	}
	return b.Finish(ctx)
}

// check reads the whole image back, by way of the pages, and compares.
func check(t testing.TB, from bucket.Bucket, h Head, im image) {
	t.Helper()
	got, err := readBack(t.Context(), NewReader(from), h)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(im.chunks) {
		t.Fatalf("%d chunks came back, want %d", len(got), len(im.chunks))
	}
	for i, want := range im.chunks {
		if !bytes.Equal(got[i], want) {
			t.Fatalf("chunk %d differs", i)
		}
	}
	m, err := NewReader(from).ReadManifest(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	missing, err := MissingPacks(t.Context(), from, m)
	if err != nil || len(missing) > 0 {
		t.Fatalf("missing packs %v, error %v", missing, err)
	}
	for _, id := range m.Packs {
		if err := NewReader(from).VerifyPack(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
}

// readBack returns every chunk under h.
func readBack(ctx context.Context, r *Reader, h Head) (map[uint64][]byte, error) {
	out := make(map[uint64][]byte)
	var walk func(pos content.Pos, p Pair) error
	walk = func(pos content.Pos, p Pair) error {
		n, err := r.ReadNode(ctx, h.Scope, pos.Level, p)
		if err != nil {
			return err
		}
		for i := range n.Page.Len() {
			if pair, ok := n.Page.ChildPair(n.Node, i); ok {
				if err := walk(pos.Child(i), pair); err != nil {
					return err
				}
				continue
			}
			at, ok := n.Page.Child(i)
			if !ok {
				continue
			}
			frames, err := r.ReadFrames(ctx, []Extent{{n.Node.Entry(i), at}})
			if err != nil {
				return err
			}
			out[pos.Child(i).Index] = frames[0].Bytes()
		}
		return nil
	}
	if h.Root.Map.IsHole() {
		return out, nil
	}
	return out, walk(content.Pos{Level: h.Root.Depth()}, h.Top())
}

func loadIndex(t testing.TB, from bucket.Bucket, dir string, scopes ...content.Scope) *Index {
	t.Helper()
	if scopes == nil {
		scopes = []content.Scope{content.Mesh()}
	}
	x, err := LoadIndex(t.Context(), IndexConfig{Bucket: from, Scopes: scopes, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}
