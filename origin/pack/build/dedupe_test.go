package build

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/simulations/mem"
)

// complete fails unless x locates each chunk of im, and the bytes there are its.
func complete(t *testing.T, x *index.Index, from *memory, im image) {
	t.Helper()
	r := pack.NewReader(from)
	for i, chunk := range im.chunks {
		id := content.Sum(chunk)
		at, ok := x.Locate(t.Context(), id)
		if !ok {
			t.Fatalf("chunk %d is not known", i)
		}
		if _, err := r.ReadFrames(t.Context(), []pack.Extent{{CID: id, Location: at}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := x.Locate(t.Context(), content.CID{1}); ok {
		t.Fatal("what does not exist is known")
	}
}

func cacheFile(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, error %v", files, err)
	}
	return files[0]
}

func TestTheIndexIsReadOnce(t *testing.T) {
	im, dir := newImage(1000, 1, 0), t.TempDir()
	to := newMemory(t)
	build(t, config(to, im), im)
	to.forget()
	complete(t, to.loadIndex(t, dir), to, im)
	if want := 1 + len(im.chunks); to.asked(mem.Get) != want {
		t.Fatalf("%d reads, want %d: one of the index object, one a chunk", to.asked(mem.Get), want)
	}
	to.forget()
	x := to.loadIndex(t, dir)
	if to.asked(mem.Get) != 0 {
		t.Fatalf("%d reads with a cache", to.asked(mem.Get))
	}
	complete(t, x, to, im)
}

func TestAnIndexWithoutIndexObjects(t *testing.T) {
	im, dir := newImage(1000, 1, 0), t.TempDir()
	to := newMemory(t)
	cfg := config(to, im)
	cfg.fold = true
	_, s := build(t, cfg, im)
	to.forget()
	x := to.loadIndex(t, dir)
	if to.asked(mem.Get) != s.Packs {
		t.Fatalf("%d reads for %d packs", to.asked(mem.Get), s.Packs)
	}
	complete(t, x, to, im)
	to.forget()
	complete(t, to.loadIndex(t, dir), to, im)
	if to.asked(mem.Get) != len(im.chunks) {
		t.Fatalf("%d reads with a cache", to.asked(mem.Get)-len(im.chunks))
	}
}

func TestADamagedCacheIsReadAnew(t *testing.T) {
	im, dir := newImage(200, 1, 0), t.TempDir()
	to := newMemory(t)
	build(t, config(to, im), im)
	to.loadIndex(t, dir)
	path := cacheFile(t, dir)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"flipped": append(bytes.Clone(whole[:len(whole)/2]), append([]byte{whole[len(whole)/2] ^ 1}, whole[len(whole)/2+1:]...)...),
		"cut":     whole[:len(whole)-5],
		"empty":   nil,
		"other":   []byte("something else altogether"),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			complete(t, to.loadIndex(t, dir), to, im)
			if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, whole) {
				t.Fatalf("the cache was not mended, error %v", err)
			}
		})
	}
}

func TestTheIndexFollowsTheBucket(t *testing.T) {
	im, dir := newImage(500, 1, 0), t.TempDir()
	to := newMemory(t)
	build(t, config(to, im), im)
	complete(t, to.loadIndex(t, dir), to, im)

	more := newImage(500, 1, 10000)
	cfg := config(to, more)
	cfg.Random = nil
	build(t, cfg, more)
	x := to.loadIndex(t, dir)
	complete(t, x, to, im)
	complete(t, x, to, more)

	// Packs that are gone, and one that was rewritten into a stub.
	keys := to.Keys("packs/")
	for i, key := range keys[1:] {
		if i == 3 {
			id, err := pack.ParseKey(keys[0])
			if err != nil {
				t.Fatal(err)
			}
			to.set(t, key, pack.NewWriter(id, nil).SealStub(id).Bytes)
			continue
		}
		if err := to.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{dir, ""} {
		x = to.loadIndex(t, dir)
		for _, chunk := range im.chunks {
			if at, ok := x.Locate(t.Context(), content.Sum(chunk)); ok && at.Pack.Key() != keys[0] {
				t.Fatalf("a chunk is said to be in %s", at)
			}
		}
		if x.Len() == 0 {
			t.Fatal("the pack that is left is not known")
		}
	}
}

func TestDamagedObjectsAreNotIndexed(t *testing.T) {
	im := newImage(500, 1, 0)
	to := newMemory(t)
	_, s := build(t, config(to, im), im)
	flip := func(b []byte) { b[len(b)-40] ^= 1 }
	to.Corrupt(to.Keys("index/")[0], flip)
	to.set(t, "index/mesh/README", []byte("hello"))
	to.set(t, "packs/mesh/README", []byte("hello"))
	complete(t, to.loadIndex(t, ""), to, im)
	for _, key := range to.Keys("packs/")[:s.Packs] {
		to.Corrupt(key, flip)
	}
	if x := to.loadIndex(t, ""); x.Len() != 0 {
		t.Fatalf("%d objects of damaged packs", x.Len())
	}
}

func TestLoadIndexRefuses(t *testing.T) {
	_, err := index.Load(t.Context(), index.Config{Bucket: newMemory(t)})
	wantErr(t, err, content.ErrInvalid)
}
