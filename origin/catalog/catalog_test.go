package catalog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// losing returns a store that loses the reply of each every-th write, of none with
// 0; applied says whether such a write was carried out.
func losing(t *testing.T, every int64, applied bool) *mem.Bucket {
	var puts atomic.Int64
	return mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
		if c.Op == mem.Put && every > 0 && puts.Add(1)%every == 0 {
			return mem.Fault{Err: bucket.ErrUnknown, Applied: applied}
		}
		return mem.Fault{}
	}})
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
				m := newMesh(t, losing(t, every, applied))
				for round := range 5 {
					name := fmt.Sprintf("v%d", round)
					won := creators(t, m, name, 8)
					if won != 1 {
						t.Fatalf("%d creators of %s won", won, name)
					}
				}
			})
		}
	}
}

func creators(t *testing.T, m mesh, name string, n int) (won int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		c := m.open(t)
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
	c := newMesh(t, losing(t, 1, true)).open(t)
	var base *Record
	for i := range 20 {
		r, err := c.Commit(t.Context(), change("v", fmt.Sprint(i), base))
		if err != nil || r.Version != uint64(i+1) {
			t.Fatalf("write %d: version %d, %v", i, r.Version, err)
		}
		base = &r
	}
	stale := Record{ETag: "\"old\"", Envelope: trust.Envelope{Kind: content.KindVolume, Name: "v", Farm: "a", Version: 3}}
	if _, err := c.Commit(t.Context(), change("v", "x", &stale)); !errors.Is(err, content.ErrConflict) {
		t.Errorf("a write over an old version: %v, want ErrConflict", err)
	}
}

func TestDeletedNameRisesOn(t *testing.T) {
	c := newMesh(t, mem.New(t, mem.Config{})).open(t)
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
	c := newMesh(t, mem.New(t, mem.Config{})).open(t)
	if _, err := c.Commit(t.Context(), Change{Kind: content.KindImage, Name: "x", Body: []byte("image")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(t.Context(), Change{Kind: content.KindTag, Name: "x", Body: []byte("tag")}); !errors.Is(err, content.ErrExists) {
		t.Errorf("a tag of that name: %v, want ErrExists", err)
	}
}

// TestListReadsWhatChanged: a list asks for the records that it has not seen.
func TestListReadsWhatChanged(t *testing.T) {
	store := mem.New(t, mem.Config{})
	m := newMesh(t, store)
	c := m.open(t)
	for i := range 30 {
		if _, err := c.Commit(t.Context(), change(fmt.Sprintf("v%02d", i), "1", nil)); err != nil {
			t.Fatal(err)
		}
	}
	other, known := m.open(t), map[string]Record{}
	other.cfg.Recall = func(_ content.Kind, name string) (Record, bool) { r, ok := known[name]; return r, ok }
	count := func() (n int) {
		for r, err := range other.List(t.Context(), content.KindVolume, "", "") {
			if err != nil || r.Name != fmt.Sprintf("v%02d", n) {
				t.Fatalf("%q, %v", r.Name, err)
			}
			defer func() { known[r.Name] = r }()
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
	before := store.Count(mem.Get)
	count()
	if n := store.Count(mem.Get) - before; n != 1 {
		t.Errorf("a second list read %d records, want the changed one", n)
	}
}

func TestForeignRecordsAndBuckets(t *testing.T) {
	store := mem.New(t, mem.Config{})
	m, other := newMesh(t, store), newMesh(t, store)
	for range 2 { // claimed again, it is still its
		if err := ClaimMesh(t.Context(), store, m.verifier.Mesh()); err != nil {
			t.Fatal(err)
		}
	}
	if err := ClaimMesh(t.Context(), store, other.verifier.Mesh()); !errors.Is(err, content.ErrConflict) {
		t.Errorf("another mesh: %v, want ErrConflict", err)
	}
	commit(t, other.open(t), change("v", "1", nil))
	if _, err := m.open(t).Get(t.Context(), content.KindVolume, "v"); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("a record of another mesh: %v, want ErrForbidden", err)
	}
}
