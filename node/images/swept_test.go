package images

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/swept"
)

// sweeping is a store that does something before the next put of a key that begins so, which may fail.
type sweeping struct {
	before string
	do     atomic.Pointer[func()]
	fault  mem.Fault
}

func (s *sweeping) world(t *testing.T) *world {
	t.Helper()
	return newWorldOver(t, mem.New(t, mem.Config{MayReadDeleted: true, Fault: func(c mem.Call) mem.Fault {
		if c.Op != mem.Put || !strings.HasPrefix(c.Key, s.before) {
			return mem.Fault{}
		}
		do := s.do.Swap(nil)
		if do == nil {
			return mem.Fault{}
		}
		(*do)()
		return s.fault
	}}))
}

// arm has what is there now go when the time comes, for good, or as far as others are told.
func (s *sweeping) arm(t *testing.T, w *world, sweep func(testing.TB, bucket.Bucket, ...string)) {
	keys := swept.Packs(t, w.store)
	do := func() { sweep(t, w.store, keys...) }
	s.do.Store(&do)
}

func sweeps() map[string]func(testing.TB, bucket.Bucket, ...string) {
	return map[string]func(testing.TB, bucket.Bucket, ...string){
		"collected": func(t testing.TB, b bucket.Bucket, keys ...string) { swept.Collect(t, b, keys...) },
		"condemned": func(t testing.TB, b bucket.Bucket, keys ...string) { swept.Tombstone(t, b, true, keys...) },
	}
}

func faults() map[string]mem.Fault {
	return map[string]mem.Fault{"": {}, "not applied": {Err: bucket.ErrUnknown}, "applied": {Err: bucket.ErrUnknown, Applied: true}}
}

// named are the packs that a name needs.
func (w *world) named(t *testing.T, kind content.Kind, name string) (keys []string) {
	t.Helper()
	k, err := w.cfg.Names.Lookup(t.Context(), kind, name, true)
	if err != nil {
		t.Fatal(err)
	}
	m, err := pack.NewReader(w.store).ReadManifest(t.Context(), *k.Head)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Packs {
		keys = append(keys, p.ID.Key())
	}
	return keys
}

// TestAnImportIsHeldUp for so long that what it shares with others is collected: before its first pack, or its record, is
// there. It stores that anew, and nothing that it names goes.
func TestAnImportIsHeldUp(t *testing.T) {
	for how, sweep := range sweeps() {
		for failed, fault := range faults() {
			for _, before := range []string{"packs/", "records/"} {
				for _, kind := range []content.Kind{content.KindImage, content.KindTree} {
					t.Run(strings.Join([]string{string(kind), how, failed, before}, " "), func(t *testing.T) {
						s := &sweeping{before: before, fault: fault}
						w := s.world(t)
						dir := t.TempDir()
						raw, more := make([]byte, 3<<20), make([]byte, 300_000)
						random := rand.NewChaCha8([32]byte{1})
						_, _ = random.Read(raw)
						_, _ = random.Read(more)
						publish := func(name string, b []byte) operations.View {
							path := filepath.Join(dir, "file")
							if err := os.WriteFile(path, b, 0o600); err != nil {
								t.Fatal(err)
							}
							req := ImportRequest{Options: convert.Options{Path: path, Format: convert.Raw}}
							do := w.Import
							if kind == content.KindTree {
								do, req.Options = w.ImportTree, convert.Options{Path: dir}
							}
							v, err := do(t.Context(), name, req)
							if err != nil {
								t.Fatal(err)
							}
							return w.ended(t, v)
						}
						if v := publish("first", raw); v.State != operations.Done {
							t.Fatalf("%+v", v)
						}
						if _, err := w.Remove(t.Context(), "first"); err != nil {
							t.Fatal(err)
						}
						gone := swept.Packs(t, w.store)
						s.arm(t, w, sweep)
						if v := publish("second", append(raw, more...)); v.State != operations.Done {
							t.Fatalf("%+v", v)
						}
						if s.do.Load() != nil {
							t.Fatal("nothing was collected")
						}
						there := swept.Packs(t, w.store)
						for _, key := range w.named(t, kind, "second") {
							if slices.Contains(gone, key) || !slices.Contains(there, key) {
								t.Errorf("it needs %s, which is gone", key)
							}
						}
					})
				}
			}
		}
	}
}

// TestATagOfWhatIsGone: the image was removed, and collected, while the tag was on its way. The tag is as it was.
func TestATagOfWhatIsGone(t *testing.T) {
	for how, sweep := range sweeps() {
		for failed, fault := range faults() {
			t.Run(how+" "+failed, func(t *testing.T) {
				s := &sweeping{before: "records/", fault: fault}
				w := s.world(t)
				publish(t, w, "old")
				if _, err := w.Tag(t.Context(), "old", "stable"); err != nil {
					t.Fatal(err)
				}
				kept := swept.Packs(t, w.store)
				publish(t, w, "new")
				keys := swept.Packs(t, w.store, kept...)
				do := func() { sweep(t, w.store, keys...) }
				for _, tag := range []string{"stable", "other"} {
					s.do.Store(&do)
					if _, err := w.Tag(t.Context(), "new", tag); !errors.Is(err, content.Gone) || !strings.Contains(err.Error(), "import anew") {
						t.Errorf("%s: %v", tag, err)
					}
				}
				if got := w.named(t, content.KindTag, "stable"); !slices.Equal(got, kept) {
					t.Errorf("it stands for %v, not %v", got, kept)
				}
				if _, err := w.Get(t.Context(), "other"); !errors.Is(err, content.ErrNotFound) {
					t.Errorf("a new one: %v", err)
				}
			})
		}
	}
}

// TestALongImportKeepsWhatItRefersTo, and ends when that is gone.
func TestALongImportKeepsWhatItRefersTo(t *testing.T) {
	w := newWorld(t)
	publish(t, w, "debian")
	at, err := w.origin(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := swept.Packs(t, w.store)[0]
	id, err := pack.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	batch := swept.Tombstone(t, w.store, false, key)
	if err := at.secure(t.Context(), []string{id.Key()}); err != nil || len(swept.Listed(t, w.store, batch)) != 0 {
		t.Errorf("%v, and the batch has %v", err, swept.Listed(t, w.store, batch))
	}
	swept.Collect(t, w.store, key)
	if err := at.secure(t.Context(), []string{id.Key()}); !errors.Is(err, content.Gone) {
		t.Errorf("once it is gone: %v", err)
	}
}
