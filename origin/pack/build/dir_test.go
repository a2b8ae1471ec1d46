package build

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack/index"
)

// dying is a bucket whose n-th Put from the start and all after it fail.
type dying struct {
	bucket.Bucket
	left atomic.Int64
}

func (d *dying) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if d.left.Add(-1) < 0 {
		return bucket.Info{}, errKilled
	}
	return d.Bucket.Put(ctx, key, body, cond)
}

// The same as in memory, on a folder: built, killed on the way, run again with a
// cached index, read back.
func TestOnADirectory(t *testing.T) {
	root, cache := t.TempDir(), filepath.Join(t.TempDir(), "index")
	im := newImage(1500, 1, 0)
	m := newMesh(t, time.Now())
	to, err := dir.Open(t.Context(), root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	load := func() *index.Index {
		x, err := index.Load(t.Context(), index.Config{Bucket: to, Scopes: []content.Scope{content.Mesh()}, Verifier: m.verifier, Dir: cache})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	base := Config{Scope: content.Mesh(), Size: im.size, ChunkSize: testChunk, PackSize: 256 << 10, Signer: m.founder}
	for left := range int64(4) {
		load()
		mortal := &dying{Bucket: to}
		mortal.left.Store(left)
		cfg := base
		cfg.Bucket, cfg.Known = mortal, load()
		if _, _, err := tryBuild(t.Context(), cfg, im); err == nil {
			t.Fatal("a failed upload went unnoticed")
		}
	}
	cfg := base
	cfg.Bucket, cfg.Known = to, load()
	h, s := build(t, cfg, im)
	check(t, to, h, im)
	if s.NewChunks == 0 || s.NewChunks == s.Chunks {
		t.Fatalf("%d of %d chunks were sent; some were there", s.NewChunks, s.Chunks)
	}
	cfg.Random, cfg.Known = neverRead{}, load()
	if again, _ := build(t, cfg, im); again != h {
		t.Fatalf("head %+v, before %+v", again, h)
	}
	wide := cfg
	wide.Scope, wide.Random = content.Farm("a"), nil
	farm, s := build(t, wide, im)
	if s.NewChunks != 0 {
		t.Fatalf("a farm's image stores %d chunks of the mesh again", s.NewChunks)
	}
	check(t, to, farm, im)
}
