package build

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestImagesComeBack(t *testing.T) {
	dense := newImage(300, 1, 0)
	repeated := newImage(2*content.MapFanout, 1, 0)
	for i := range repeated.chunks {
		repeated.chunks[i] = chunkOf(i%7, testChunk)
	}
	far := image{content.SizeMax, map[uint64][]byte{0: chunkOf(1, testChunk), content.SizeMax/testChunk - 1: chunkOf(2, testChunk)}}
	odd := image{3*testChunk + 512, map[uint64][]byte{3: append([]byte{7}, make([]byte, testChunk-1)...)}}
	for name, im := range map[string]image{
		"one chunk":              newImage(1, 1, 0),
		"all holes":              {64 * testChunk, nil},
		"dense, several packs":   dense,
		"sparse, several nodes":  newImage(5000, 13, 0),
		"three levels":           newImage(content.MapFanout*content.MapFanout+5, 2000, 0),
		"far apart, four levels": far,
		"the same chunks again":  repeated,
		"a short last chunk":     odd,
	} {
		t.Run(name, func(t *testing.T) {
			to := newMemory(t)
			h, s := build(t, config(to, im), im)
			check(t, to, h, im)
			if s.Chunks != uint64(len(im.chunks)) || s.Packs != len(to.Keys("packs/")) {
				t.Fatalf("stats %+v for %d chunks and %d packs", s, len(im.chunks), len(to.Keys("packs/")))
			}
			c := content.NewCodec()
			b, err := h.Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := pack.DecodeHead(c, b); err != nil || again != h {
				t.Fatalf("head %+v came back as %+v, error %v", h, again, err)
			}
			// Whatever is known needs no upload, down to the manifest.
			cfg := config(to, im)
			cfg.Known, cfg.Random = to.loadIndex(t, ""), neverRead{}
			to.forget()
			again, s := build(t, cfg, im)
			if again != h || to.asked(mem.Put) != 0 || s.NewChunks != 0 {
				t.Fatalf("imported again: %d uploads, %+v", to.asked(mem.Put), s)
			}
		})
	}
}

// neverRead fails whoever wants to begin a pack.
type neverRead struct{}

func (neverRead) Read([]byte) (int, error) { return 0, errors.New("a pack was begun") }

func TestRepeatedContentIsStoredOnce(t *testing.T) {
	im := newImage(3*content.MapFanout, 1, 0)
	for i := range im.chunks {
		im.chunks[i] = chunkOf(i%5, testChunk)
	}
	to := newMemory(t)
	h, s := build(t, config(to, im), im)
	if s.NewChunks != 5 {
		t.Fatalf("%d chunks stored, want 5", s.NewChunks)
	}
	m, err := pack.NewReader(to).ReadManifest(t.Context(), h)
	if refs := m.Packs[0].Refs; err != nil || len(m.Packs) != 1 || refs != uint64(len(im.chunks))+4 {
		t.Fatalf("manifest %+v, %+v, error %v", m, s, err)
	}
}

func TestAColdReaderNeedsThreeReads(t *testing.T) {
	im := newImage(content.MapFanout*2, 3, 0)
	to := newMemory(t)
	h, _ := build(t, config(to, im), im)
	r := pack.NewReader(to)
	to.forget()
	top, err := r.ReadNode(t.Context(), h.Scope, h.Root.Shape().Depth(), h.Top())
	if err != nil {
		t.Fatal(err)
	}
	pair, ok := top.Page.ChildPair(top.Node, 1)
	if !ok {
		t.Fatal("no second leaf")
	}
	leaf, err := r.ReadNode(t.Context(), h.Scope, 1, pair)
	if err != nil {
		t.Fatal(err)
	}
	at, _ := leaf.Page.Child(2) // chunk 1026
	if _, err := r.ReadFrames(t.Context(), []pack.Extent{{CID: leaf.Node.Entry(2), Location: at}}); err != nil {
		t.Fatal(err)
	}
	if to.asked(mem.Get) != 3 {
		t.Fatalf("%d reads, want 3", to.asked(mem.Get))
	}
}

func TestTheLastPackEndsWithTheMetadata(t *testing.T) {
	im := newImage(content.MapFanout*3, 7, 0)
	to := newMemory(t)
	cfg := config(to, im)
	cfg.PackSize = pack.SizeTarget
	h, s := build(t, cfg, im)
	if s.Packs != 1 {
		t.Fatalf("%d packs, want one", s.Packs)
	}
	d, err := pack.NewReader(to).ReadDirectory(t.Context(), h.Node.Pack)
	if err != nil {
		t.Fatal(err)
	}
	roles := []pack.Role{pack.RoleNode, pack.RolePage, pack.RoleNode, pack.RolePage, pack.RoleNode, pack.RolePage, pack.RoleNode, pack.RolePage, pack.RoleRoot, pack.RoleManifest}
	tail := d.Entries[len(d.Entries)-len(roles):]
	for i, e := range tail {
		if e.Role != roles[i] {
			t.Fatalf("frame %d from the end is of role %d, want %d", len(roles)-i, e.Role, roles[i])
		}
	}
	root, err := h.Root.Encode(content.NewCodec())
	if err != nil || tail[8].CID != root.CID() || tail[9].Extent != h.Manifest || tail[6].Extent != h.Node || tail[7].Extent != h.Page {
		t.Fatalf("head %+v, error %v", h, err)
	}
	for _, e := range d.Entries[:len(d.Entries)-len(roles)] {
		if e.Role != pack.RoleChunk {
			t.Fatalf("role %d among the chunks", e.Role)
		}
	}
}

func TestPacksStayWithinTheirSize(t *testing.T) {
	im := newImage(5000, 1, 0)
	to := newMemory(t)
	h, s := build(t, config(to, im), im)
	if s.Packs < 30 {
		t.Fatalf("only %d packs", s.Packs)
	}
	for _, key := range to.Keys("packs/") {
		if n := len(to.object(t, key)); n > 256<<10*3/2 {
			t.Fatalf("%s has %d bytes", key, n)
		}
	}
	check(t, to, h, im)
}

func TestAddRefuses(t *testing.T) {
	im := image{4*testChunk + 512, nil}
	b, err := New(t.Context(), config(newMemory(t), im))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	chunk := chunkOf(1, testChunk)
	wantErr(t, b.Add(t.Context(), 5, chunk), content.ErrInvalid)
	wantErr(t, b.Add(t.Context(), 0, chunk[1:]), content.ErrInvalid)
	wantErr(t, b.Add(t.Context(), 4, slices.Repeat([]byte{1}, testChunk)), content.ErrInvalid)
	if err := b.Add(t.Context(), 1, chunk); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.Add(t.Context(), 1, chunk), content.ErrInvalid)
	if _, _, err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, b.Add(t.Context(), 2, chunk), content.ErrClosed)
	_, _, err = b.Finish(t.Context())
	wantErr(t, err, content.ErrClosed)
}

func TestConfigsThatContradictThemselves(t *testing.T) {
	im := newImage(4, 1, 0)
	for name, change := range map[string]func(*Config){
		"no bucket":       func(c *Config) { c.Bucket = nil },
		"no scope":        func(c *Config) { c.Scope = content.Scope{} },
		"a bad farm name": func(c *Config) { c.Scope = content.Farm("../x") },
		"no size":         func(c *Config) { c.Size = 0 },
		"odd chunks":      func(c *Config) { c.ChunkSize = 5000 },
		"large packs":     func(c *Config) { c.PackSize = pack.SizeMax },
		"many ancestors":  func(c *Config) { c.Lineage = make([]content.CID, content.LineageMax+1) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(newMemory(t), im)
			change(&cfg)
			_, err := New(t.Context(), cfg)
			wantErr(t, err, content.ErrInvalid)
		})
	}
}

// A root may refer to packs of its own or a wider scope, whatever is known.
func TestScopesAreKeptApart(t *testing.T) {
	im := newImage(100, 1, 0)
	scopes := []content.Scope{content.Public(), content.Mesh(), content.Farm("a"), content.Farm("b")}
	for _, inner := range scopes {
		for _, outer := range scopes {
			to := newMemory(t)
			cfg := config(to, im)
			cfg.Scope = outer
			build(t, cfg, im)
			cfg = config(to, im)
			cfg.Scope, cfg.Known = inner, to.loadIndex(t, "", outer)
			cfg.Random = nil
			h, s := build(t, cfg, im)
			if reused := s.NewChunks == 0; reused != outer.Covers(inner) {
				t.Fatalf("scope %s refers to packs of scope %s: %v", inner, outer, reused)
			}
			check(t, to, h, im)
		}
	}
}

func TestEveryObjectIsHandedOn(t *testing.T) {
	im := newImage(500, 2, 0)
	var mu sync.Mutex
	got := make(map[content.CID]bool)
	cfg := config(newMemory(t), im)
	cfg.OnObject = func(v content.Verified) {
		mu.Lock()
		defer mu.Unlock()
		got[v.CID()] = content.Sum(v.Bytes()) == v.CID()
	}
	reports := 0
	cfg.Progress = func(s Stats) { reports++ }
	head, s := build(t, cfg, im)
	if !got[head.Node.CID] || !got[head.Page.CID] {
		t.Fatal("the map was not handed on")
	}
	if len(got) != len(im.chunks)+2 || reports != int(s.Chunks)+s.Packs {
		t.Fatalf("%d objects and %d reports, want %d and %d", len(got), reports, len(im.chunks)+2, int(s.Chunks)+s.Packs)
	}
	for id, ok := range got {
		if !ok {
			t.Fatalf("%s was handed on damaged", id)
		}
	}
}

func TestABuilderEndsWithItsContext(t *testing.T) {
	im := newImage(4000, 1, 0)
	to := newMemory(t)
	ctx, cancel := context.WithCancel(t.Context())
	b, err := New(ctx, config(to, im))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for i := uint64(0); err == nil; i++ {
		err = b.Add(t.Context(), i, im.chunks[i])
	}
	wantErr(t, err, context.Canceled)
	_, _, err = b.Finish(t.Context())
	wantErr(t, err, context.Canceled)
	b.Abort()
}

func TestFinishEndsWithItsContext(t *testing.T) {
	im := newImage(40, 1, 0)
	b, err := New(t.Context(), config(newMemory(t), im))
	if err != nil {
		t.Fatal(err)
	}
	if err := im.add(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = b.Finish(ctx)
	wantErr(t, err, context.Canceled)
}

func TestAFoldWritesNoIndex(t *testing.T) {
	im := newImage(400, 1, 0)
	to := newMemory(t)
	cfg := config(to, im)
	cfg.fold, cfg.PackSize = true, pack.SizeTarget
	build(t, cfg, im)
	if to.asked(mem.Put) != 1 || len(to.Keys("index/")) != 0 {
		t.Fatalf("%d uploads, index %v", to.asked(mem.Put), to.Keys("index/"))
	}
}

var errKilled = errors.New("killed")

// Killed at any upload and run again, an import sends only what is missing.
func TestKilledAndRunAgain(t *testing.T) {
	im := newImage(800, 1, 0)
	whole := newMemory(t)
	want, _ := build(t, config(whole, im), im)
	for n := range whole.asked(mem.Put) {
		for _, applied := range []bool{false, true} {
			to := newMemory(t)
			to.fault = func(i int, _ string) mem.Fault {
				if i < n {
					return mem.Fault{}
				}
				return mem.Fault{Err: errKilled, Applied: applied && i == n}
			}
			_, _, err := tryBuild(t.Context(), config(to, im), im)
			if err == nil && n < whole.asked(mem.Put)-1 { // the last one is the index object
				t.Fatal("a failed upload went unnoticed")
			}
			to.fault = nil
			there := make(map[content.CID]bool)
			for _, key := range to.Keys("packs/") {
				id, err := pack.ParseKey(key)
				if err != nil {
					t.Fatal(err)
				}
				d, err := pack.NewReader(to).ReadDirectory(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range d.Entries {
					there[e.CID] = e.Role == pack.RoleChunk
				}
			}
			delete(there, content.CID{})
			cfg := config(to, im)
			cfg.Known, cfg.Random = to.loadIndex(t, ""), nil
			h, s := build(t, cfg, im)
			check(t, to, h, im)
			if h.Root != want.Root {
				t.Fatalf("root %+v, want %+v", h.Root, want.Root)
			}
			chunks := 0
			for _, isChunk := range there {
				if isChunk {
					chunks++
				}
			}
			if int(s.NewChunks) != len(im.chunks)-chunks {
				t.Fatalf("killed at upload %d: %d chunks sent, %d of %d were there", n, s.NewChunks, chunks, len(im.chunks))
			}
		}
	}
}

// A lost reply, or an upload that fails and may be tried again, is no failure.
func TestLostRepliesAreSettled(t *testing.T) {
	im := newImage(300, 1, 0)
	whole := newMemory(t)
	want, wantStats := build(t, config(whole, im), im)
	for name, fault := range map[string]mem.Fault{
		"not applied, outcome unknown": {Err: bucket.ErrUnknown},
		"applied, outcome unknown":     {Err: bucket.ErrUnknown, Applied: true},
		"applied, taken for taken":     {Err: bucket.ErrPrecondition, Applied: true},
		"not applied, unavailable":     {Err: content.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			to := newMemory(t)
			failed := make(map[string]bool)
			to.fault = func(_ int, key string) mem.Fault {
				if failed[key] || strings.HasPrefix(key, "index/") {
					return mem.Fault{}
				}
				failed[key] = true
				return fault
			}
			h, s := build(t, config(to, im), im)
			check(t, to, h, im)
			if doubt := name != "not applied, unavailable"; s.Since.IsZero() != doubt {
				t.Errorf("the first pack was there at %v", s.Since)
			}
			if s.Since = wantStats.Since; h != want || s != wantStats {
				t.Fatalf("%+v %+v, want %+v %+v", h, s, want, wantStats)
			}
		})
	}
}

func TestANameTakenByAnotherObject(t *testing.T) {
	im := newImage(10, 1, 0)
	to := newMemory(t)
	h, _ := build(t, config(to, im), im)
	key := h.Node.Pack.Key()
	whole := to.object(t, key)
	to.set(t, key, whole[:len(whole)-1])
	_, _, err := tryBuild(t.Context(), config(to, im), im)
	wantErr(t, err, content.ErrExists)
}

func TestAFailedIndexObjectIsNoFailure(t *testing.T) {
	im := newImage(300, 1, 0)
	to := newMemory(t)
	to.fault = func(_ int, key string) mem.Fault {
		if strings.HasPrefix(key, "index/") {
			return mem.Fault{Err: errKilled}
		}
		return mem.Fault{}
	}
	h, _ := build(t, config(to, im), im)
	check(t, to, h, im)
	if x := to.loadIndex(t, ""); x.Len() < len(im.chunks) {
		t.Fatalf("the footers give %d objects", x.Len())
	}
}

// TestALongBuildSaysWhatStands: again and again, and no pack that is not in the bucket yet; who does not like that ends it.
func TestALongBuildSaysWhatStands(t *testing.T) {
	im := newImage(600, 1, 0)
	to := newMemory(t)
	cfg := config(to, im)
	var told atomic.Int64
	enough := errors.New("enough")
	cfg.Every = time.Nanosecond
	cfg.Standing = func(ctx context.Context, keys []string) error {
		for _, key := range keys {
			if id, err := pack.ParseKey(key); err != nil {
				t.Error(err)
			} else if _, err := pack.ReadFooter(ctx, to, id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		if len(keys) > 1 && told.Add(1) == 3 {
			return enough
		}
		return nil
	}
	b, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	for err == nil {
		for index := range im.size / int64(cfg.ChunkSize) {
			if raw := im.chunks[uint64(index)]; raw != nil && err == nil {
				err = b.Add(t.Context(), uint64(index), raw)
			}
		}
		if err == nil {
			_, _, err = b.Finish(t.Context())
		}
	}
	if !errors.Is(err, enough) {
		t.Errorf("it ended by %v, told %d times", err, told.Load())
	}
}
