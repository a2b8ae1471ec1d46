package build

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a mesh with its founder, who is an admin of farm a.
type mesh struct {
	founder  trust.Signer
	verifier *trust.Verifier
}

func now() time.Time { return time.Date(2026, 11, 20, 22, 30, 0, 0, time.UTC) }

func newMesh(t testing.TB, at time.Time) mesh {
	t.Helper()
	key := trust.NewPrivateKey()
	root := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: root}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "a"}, at)
	if err != nil {
		t.Fatal(err)
	}
	return mesh{trust.Signer{Key: key, Chain: chain}, trust.NewVerifier(root.Public())}
}

func (m mesh) member(t testing.TB, role trust.Role, farm string) trust.Signer {
	t.Helper()
	key := trust.NewPrivateKey()
	chain, err := m.founder.Issue(trust.Identity{Key: key.Public(), Role: role, Farm: farm}, now())
	if err != nil {
		t.Fatal(err)
	}
	return trust.Signer{Key: key, Chain: chain}
}

// memory is the bucket of a mesh, in memory; its objects may be put in place of others.
type memory struct {
	*mem.Bucket
	mesh
	at     time.Time      // by the store's clock
	before map[mem.Op]int // calls until forget

	mu    sync.Mutex // guards what follows
	puts  int
	fault func(put int, key string) mem.Fault // of each Put, counted from 0; nil for none
}

func newMemory(t testing.TB) *memory {
	m := &memory{mesh: newMesh(t, now()), at: now(), before: make(map[mem.Op]int)}
	m.Bucket = mem.New(t, mem.Config{Now: func() time.Time { return m.at }, Fault: func(c mem.Call) mem.Fault {
		m.mu.Lock()
		defer m.mu.Unlock()
		if c.Op != mem.Put || m.fault == nil {
			return mem.Fault{}
		}
		m.puts++
		return m.fault(m.puts-1, c.Key)
	}})
	return m
}

// forget begins to count anew.
func (m *memory) forget() {
	for _, op := range []mem.Op{mem.Get, mem.Put, mem.List} {
		m.before[op] = m.Count(op)
	}
}

// asked returns how many calls of op were made since forget.
func (m *memory) asked(op mem.Op) int { return m.Count(op) - m.before[op] }

// object returns the bytes of an object.
func (m *memory) object(t testing.TB, key string) []byte {
	t.Helper()
	b, _, err := bucket.ReadAll(t.Context(), m, key, pack.SizeMax)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// set puts an object in place of what was there.
func (m *memory) set(t testing.TB, key string, b []byte) {
	t.Helper()
	err := m.Delete(t.Context(), key)
	if err == nil {
		_, err = m.Put(t.Context(), key, bucket.Bytes(b), bucket.IfAbsent())
	}
	if err != nil {
		t.Fatal(err)
	}
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

// config returns a Config for what the founder of the bucket's mesh stores.
func config(to *memory, im image) Config {
	return Config{
		Bucket: to, Scope: content.Mesh(), Size: im.size, ChunkSize: testChunk, PackSize: 256 << 10,
		Signer: to.founder, Now: now, Random: &lockedReader{r: rand.NewChaCha8([32]byte{1})},
	}
}

func build(t testing.TB, cfg Config, im image) (pack.Head, Stats) {
	t.Helper()
	h, s, err := tryBuild(t.Context(), cfg, im)
	if err != nil {
		t.Fatal(err)
	}
	return h, s
}

func tryBuild(ctx context.Context, cfg Config, im image) (pack.Head, Stats, error) {
	b, err := New(ctx, cfg)
	if err != nil {
		return pack.Head{}, Stats{}, err
	}
	defer b.Abort()
	if err := im.add(ctx, b); err != nil {
		return pack.Head{}, Stats{}, err
	}
	return b.Finish(ctx)
}

// check reads the whole image back, by way of the pages, and compares.
func check(t testing.TB, from bucket.Bucket, h pack.Head, im image) {
	t.Helper()
	got, err := readBack(t.Context(), pack.NewReader(from), h)
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
	m, err := pack.NewReader(from).ReadManifest(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	missing, err := pack.MissingPacks(t.Context(), from, m, nil)
	if err != nil || len(missing) > 0 {
		t.Fatalf("missing packs %v, error %v", missing, err)
	}
	for _, p := range m.Packs {
		if err := verifyPack(t.Context(), pack.NewReader(from), p.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// lockedReader lets several goroutines read from one source of randomness.
type lockedReader struct {
	mu sync.Mutex // guards r
	r  io.Reader
}

func (l *lockedReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

// verifyPack reads each frame that the directory of a pack lists.
func verifyPack(ctx context.Context, r *pack.Reader, id pack.ID) error {
	d, err := r.ReadDirectory(ctx, id)
	if err != nil {
		return err
	}
	for _, e := range d.Entries {
		if _, err := r.ReadFrames(ctx, []pack.Extent{e.Extent}); err != nil {
			return err
		}
	}
	return nil
}

// readBack returns every chunk under h.
func readBack(ctx context.Context, r *pack.Reader, h pack.Head) (map[uint64][]byte, error) {
	out := make(map[uint64][]byte)
	var walk func(pos content.Pos, p pack.Pair) error
	walk = func(pos content.Pos, p pack.Pair) error {
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
			frames, err := r.ReadFrames(ctx, []pack.Extent{{CID: n.Node.Entry(i), Location: at}})
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
	return out, walk(content.Pos{Level: h.Root.Shape().Depth()}, h.Top())
}

func (m *memory) loadIndex(t testing.TB, dir string, scopes ...content.Scope) *index.Index {
	t.Helper()
	if scopes == nil {
		scopes = []content.Scope{content.Mesh()}
	}
	x, err := index.Load(t.Context(), index.Config{
		Bucket: m, Scopes: scopes, Verifier: m.verifier, Dir: dir, Now: func() time.Time { return m.at },
	})
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
