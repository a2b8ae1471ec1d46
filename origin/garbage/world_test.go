package garbage

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/pack/verify"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an origin, whose clock a test sets, and a mesh of one publisher.
type world struct {
	*mem.Bucket
	signer   trust.Signer
	verifier *trust.Verifier
	wants    map[string]map[uint64]uint64 // the chunks of each image, by their seeds
	packSize int                          // where packs are closed; 0 is as usual

	mu    sync.Mutex // guards what follows
	clock time.Time
	fault func(mem.Call) mem.Fault
}

const (
	chunkSize = content.ChunkSizeMin
	imageSize = 512 * chunkSize
)

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{clock: time.Date(2026, 11, 20, 22, 30, 0, 0, time.UTC), wants: map[string]map[uint64]uint64{}}
	w.Bucket = mem.New(t, mem.Config{Now: w.now, MayReadDeleted: true, Fault: w.faulty})
	key, meshKey := trust.NewPrivateKey(), trust.NewPrivateKey()
	chain, err := trust.Signer{Key: meshKey}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "a"}, w.clock)
	if err != nil {
		t.Fatal(err)
	}
	w.signer, w.verifier = trust.Signer{Key: key, Chain: chain}, trust.NewVerifier(meshKey.Public())
	if err := catalog.ClaimMesh(t.Context(), w, meshKey.Public()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *world) faulty(c mem.Call) mem.Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fault == nil {
		return mem.Fault{}
	}
	return w.fault(c)
}

// breaks has calls fail as a test says; nil heals them.
func (w *world) breaks(fault func(mem.Call) mem.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = fault
}

func (w *world) later(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

func (w *world) catalog(t testing.TB) *catalog.Catalog {
	t.Helper()
	c, err := catalog.New(catalog.Config{Bucket: w, Verifier: w.verifier, Signer: w.signer, Now: w.now})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) source() Source { return Source{Bucket: w, Verifier: w.verifier, Now: w.now} }

func (w *world) config() Config {
	return Config{Source: w.source(), Signer: w.signer, Yes: true}
}

// run is a run of a collection that has to succeed.
func (w *world) run(t testing.TB) Report {
	t.Helper()
	r, err := Run(t.Context(), w.config())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// chunk is one that is like no other and does not compress.
func chunk(seed uint64) []byte {
	b := make([]byte, 0, chunkSize)
	r := rand.NewPCG(seed, 1)
	for len(b) < chunkSize {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b
}

// chunks are n of an image, from seeds that rise.
func chunks(n int, seed uint64) map[uint64]uint64 {
	out := map[uint64]uint64{}
	for i := range uint64(n) {
		out[i] = seed + i
	}
	return out
}

// pack builds the packs of an image, of that scope.
func (w *world) pack(t testing.TB, what map[uint64]uint64, scope content.Scope) (pack.Head, pack.Manifest) {
	t.Helper()
	known, err := index.Load(t.Context(), index.Config{Bucket: w, Scopes: []content.Scope{content.Mesh()}, Verifier: w.verifier, Now: w.now})
	if err != nil {
		t.Fatal(err)
	}
	b, err := build.New(t.Context(), build.Config{Bucket: w, Scope: scope, Size: imageSize, ChunkSize: chunkSize, Known: known, Signer: w.signer, Now: w.now, PackSize: w.packSize})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(imageSize / chunkSize) {
		if seed, ok := what[i]; ok {
			if err := b.Add(t.Context(), i, chunk(seed)); err != nil {
				t.Fatal(err)
			}
		}
	}
	head, _, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head, b.Manifest()
}

// publish has a name stand for an image.
func (w *world) publish(t testing.TB, name string, what map[uint64]uint64) pack.Head {
	t.Helper()
	head, m := w.pack(t, what, content.Mesh())
	w.put(t, content.KindImage, name, "", head)
	keys := make([]string, 0, len(m.Packs))
	for _, p := range m.Packs {
		keys = append(keys, p.ID.Key())
	}
	if lost, err := Secure(t.Context(), w, keys, nil); err != nil || len(lost) > 0 {
		t.Fatalf("publish %s: %v lost, %v", name, lost, err)
	}
	w.wants[name] = what
	return head
}

func (w *world) put(t testing.TB, kind content.Kind, name, farm string, head pack.Head) {
	t.Helper()
	codec, c := content.NewCodec(), w.catalog(t)
	body, err := catalog.Image{Head: head, Source: "test"}.Encode(codec)
	if err != nil {
		t.Fatal(err)
	}
	change := catalog.Change{Kind: kind, Name: name, Farm: farm, Body: body}
	if r, err := c.Get(t.Context(), kind, name); err == nil && !r.Tombstone {
		change.Base = &r
	}
	if _, err := c.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

func (w *world) remove(t testing.TB, name string) {
	t.Helper()
	c := w.catalog(t)
	r, err := c.Get(t.Context(), content.KindImage, name)
	if err == nil {
		_, err = c.Commit(t.Context(), catalog.Change{Kind: content.KindImage, Name: name, Base: &r, Delete: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	delete(w.wants, name)
}

// check reads all that names stand for.
func (w *world) check(t testing.TB) {
	t.Helper()
	reader, names := pack.NewReader(w), 0
	for r, err := range w.source().Records(t.Context()) {
		if err != nil || r.Err != nil {
			t.Fatal(err, r.Err)
		}
		if r.Kind != content.KindImage {
			continue
		}
		names++
		report, err := verify.Config{Reader: reader}.Image(t.Context(), *r.Head)
		if err != nil || report.Err() != nil {
			t.Fatalf("%s is hurt: %v %v", r.Label(), err, report.Err())
		}
		if report.Chunks != uint64(len(w.wants[r.Name])) {
			t.Fatalf("%s has %d chunks, want %d", r.Label(), report.Chunks, len(w.wants[r.Name]))
		}
	}
	if names != len(w.wants) {
		t.Fatalf("%d names, want %d", names, len(w.wants))
	}
}

// keys are those that begin so.
func (w *world) keys(t testing.TB, prefix string) (out []string) {
	t.Helper()
	for info, err := range w.List(context.Background(), prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.Key)
	}
	return out
}

// bytes are those of all packs.
func (w *world) bytes(t testing.TB) (total int64) {
	t.Helper()
	for info, err := range w.List(context.Background(), string(content.KeyPacks), "") {
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size
	}
	return total
}

// written puts any object over any other.
func (w *world) written(t testing.TB, key string, b []byte) {
	t.Helper()
	if err := w.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Put(t.Context(), key, bucket.Bytes(b), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
}

// row finds rows of a report.
func (r Report) row(then string) (out Amount) {
	for _, row := range r.Rows {
		if strings.Contains(row.Then, then) {
			out.Objects, out.Bytes = out.Objects+row.Objects, out.Bytes+row.Bytes
		}
	}
	return out
}

// same fails unless nothing of the packs has changed.
func (w *world) same(t testing.TB, before []string) {
	t.Helper()
	if now := w.keys(t, string(content.KeyPacks)); !slices.Equal(now, before) {
		t.Fatalf("packs went or came: %v, before %v", now, before)
	}
}
