package catalog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// lossy loses the reply of conditional writes: of each first try at least, the
// write was applied and its writer is told that nobody knows.
type lossy struct {
	bucket.Bucket
	applied bool // whether a lost write was applied
	every   int64
	puts    atomic.Int64
	gets    atomic.Int64
}

func (l *lossy) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	lose := l.every > 0 && l.puts.Add(1)%l.every == 0
	if lose && !l.applied {
		return bucket.Info{}, bucket.ErrUnknown
	}
	info, err := l.Bucket.Put(ctx, key, body, cond)
	if lose && err == nil {
		return bucket.Info{}, bucket.ErrUnknown
	}
	return info, err
}

func (l *lossy) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	l.gets.Add(1)
	return l.Bucket.Get(ctx, key, r)
}

type world struct {
	store    *lossy
	signer   trust.Signer
	verifier *trust.Verifier
}

func newWorld(t *testing.T) *world {
	t.Helper()
	b, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key := trust.NewPrivateKey()
	mesh, chain, _, err := trust.FoundMesh(key.Public(), "a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &world{&lossy{Bucket: b}, trust.Signer{Key: key, Chain: chain}, trust.NewVerifier(mesh.Public())}
}

func (w *world) open(t *testing.T) *Catalog {
	t.Helper()
	c, err := New(Config{Bucket: w.store, Verifier: w.verifier, Signer: w.signer})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func change(name, body string, base *Record) Change {
	return Change{Kind: content.KindVolume, Name: name, Farm: "a", Body: []byte(body), Base: base}
}

// TestOneCreatorWins: of many who create one name at once, one wins and the
// others are told, however many replies are lost.
func TestOneCreatorWins(t *testing.T) {
	for _, applied := range []bool{true, false} {
		for _, every := range []int64{0, 1, 2, 3} {
			if !applied && every == 1 {
				continue // nothing ever arrives
			}
			t.Run(fmt.Sprintf("lost replies every %d, applied %v", every, applied), func(t *testing.T) {
				w := newWorld(t)
				w.store.applied, w.store.every = applied, every
				for round := range 5 {
					name := fmt.Sprintf("v%d", round)
					won := creators(t, w, name, 8)
					if won != 1 {
						t.Fatalf("%d creators of %s won", won, name)
					}
				}
			})
		}
	}
}

func creators(t *testing.T, w *world, name string, n int) (won int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		c := w.open(t)
		wg.Go(func() {
			_, err := c.Commit(t.Context(), change(name, fmt.Sprint(i), nil))
			mu.Lock()
			defer mu.Unlock()
			var taken *TakenError
			switch {
			case err == nil:
				won++
			case !errors.Is(err, content.ErrExists) || !errors.As(err, &taken):
				t.Errorf("a loser was told: %v", err)
			}
		})
	}
	wg.Wait()
	return won
}

// TestWriterIsNeverFencedByItself: a lone writer whose replies are all lost goes
// on, and its versions rise by one.
func TestWriterIsNeverFencedByItself(t *testing.T) {
	w := newWorld(t)
	w.store.applied, w.store.every = true, 1
	c := w.open(t)
	var base *Record
	for i := range 20 {
		r, err := c.Commit(t.Context(), change("v", fmt.Sprint(i), base))
		if err != nil || r.Version != uint64(i+1) {
			t.Fatalf("write %d: version %d, %v", i, r.Version, err)
		}
		base = &r
	}
	stale := Record{ETag: "\"old\"", Envelope: trust.Envelope{Kind: content.KindVolume, Name: "v", Version: 3}}
	if _, err := c.Commit(t.Context(), change("v", "x", &stale)); !errors.Is(err, content.ErrConflict) {
		t.Errorf("a write over an old version: %v, want ErrConflict", err)
	}
}

func TestDeletedNameRisesOn(t *testing.T) {
	w := newWorld(t)
	c := w.open(t)
	r, err := c.Commit(t.Context(), change("v", "1", nil))
	if err != nil {
		t.Fatal(err)
	}
	gone, err := c.Commit(t.Context(), Change{Kind: content.KindVolume, Name: "v", Farm: "a", Base: &r, Delete: true})
	if err != nil || !gone.Tombstone || gone.Version != 2 {
		t.Fatalf("delete: %+v, %v", gone, err)
	}
	again, err := c.Commit(t.Context(), change("v", "2", nil))
	if err != nil || again.Version != 3 || again.Tombstone {
		t.Errorf("created again: %+v, %v", again, err)
	}
	if _, err := c.Get(t.Context(), content.KindVolume, "never"); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("a name that never was: %v", err)
	}
}

// TestTagsAndImagesShareNames: a tag can't take the name of an image.
func TestTagsAndImagesShareNames(t *testing.T) {
	c := newWorld(t).open(t)
	if _, err := c.Commit(t.Context(), Change{Kind: content.KindImage, Name: "x", Body: []byte("image")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(t.Context(), Change{Kind: content.KindTag, Name: "x", Body: []byte("tag")}); !errors.Is(err, content.ErrExists) {
		t.Errorf("a tag of that name: %v, want ErrExists", err)
	}
}

// TestListReadsWhatChanged: a list asks for the records that it has not seen.
func TestListReadsWhatChanged(t *testing.T) {
	w := newWorld(t)
	c := w.open(t)
	for i := range 30 {
		if _, err := c.Commit(t.Context(), change(fmt.Sprintf("v%02d", i), "1", nil)); err != nil {
			t.Fatal(err)
		}
	}
	other := w.open(t)
	count := func() (n int) {
		for r, err := range other.List(t.Context(), content.KindVolume) {
			if err != nil || r.Name != fmt.Sprintf("v%02d", n) {
				t.Fatalf("%q, %v", r.Name, err)
			}
			n++
		}
		return n
	}
	if n := count(); n != 30 {
		t.Fatalf("%d listed", n)
	}
	r, err := c.Get(t.Context(), content.KindVolume, "v07")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(t.Context(), change("v07", "2", &r)); err != nil {
		t.Fatal(err)
	}
	before := w.store.gets.Load()
	count()
	if n := w.store.gets.Load() - before; n != 1 {
		t.Errorf("a second list read %d records, want the changed one", n)
	}
}

func TestForeignRecordsAndBuckets(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	if err := ClaimMesh(t.Context(), w.store, w.verifier.Mesh()); err != nil {
		t.Fatal(err)
	}
	if err := ClaimMesh(t.Context(), w.store, w.verifier.Mesh()); err != nil {
		t.Errorf("claimed again: %v", err)
	}
	if err := ClaimMesh(t.Context(), w.store, other.verifier.Mesh()); !errors.Is(err, content.ErrConflict) {
		t.Errorf("another mesh: %v, want ErrConflict", err)
	}
	if err := bucket.Probe(t.Context(), w.store); err != nil {
		t.Errorf("probe: %v", err)
	}
	other.store = w.store
	if _, err := other.open(t).Commit(t.Context(), change("v", "1", nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.open(t).Get(t.Context(), content.KindVolume, "v"); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a record of another mesh: %v, want ErrForbidden", err)
	}
}

// careless ignores conditions, as some stores do.
type careless struct{ bucket.Bucket }

func (c careless) Put(ctx context.Context, key string, body bucket.Body, _ bucket.Condition) (bucket.Info, error) {
	return c.Bucket.Put(ctx, key, body, bucket.Condition{})
}

func TestCarelessStoreIsRefused(t *testing.T) {
	if err := bucket.Probe(t.Context(), careless{newWorld(t).store}); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("probe: %v, want ErrReadOnly", err)
	}
}
