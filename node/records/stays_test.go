package records

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/swept"
)

// again puts the pack of all heads back.
func (w *world) again(t *testing.T) {
	t.Helper()
	s, _ := stored(t)
	if _, err := w.store.Put(t.Context(), s.ID.Key(), bucket.Bytes(s.Bytes), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
}

func packKey(t *testing.T) string {
	t.Helper()
	s, _ := stored(t)
	return s.ID.Key()
}

// TestARecordOfWhatIsGoneIsTakenBack: whatever it was that a commit begins to name, and however what it names goes; and
// what stood there before stands there again.
func TestARecordOfWhatIsGoneIsTakenBack(t *testing.T) {
	for how, sweep := range map[string]func(*testing.T, *world){
		"collected": func(t *testing.T, w *world) { swept.Collect(t, w.store, packKey(t)) },
		"condemned": func(t *testing.T, w *world) { swept.Tombstone(t, w.store, true, packKey(t)) },
	} {
		for what, change := range map[string]func(w *world, n byte) catalog.Change{
			"image":  func(w *world, n byte) catalog.Change { return w.image(t, "x", content.Mesh(), n) },
			"volume": func(w *world, n byte) catalog.Change { return w.volume(t, "x", "a", n) },
		} {
			t.Run(how+" "+what, func(t *testing.T) {
				w := newWorld(t)
				m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
				first, second := change(w, 1), change(w, 2)
				first.Since, second.Since = time.Time{}, time.Time{}
				sweep(t, w)
				var gone *catalog.GoneError
				if _, err := m.Commit(t.Context(), first); !errors.As(err, &gone) || !errors.Is(err, content.Gone) || len(gone.Keys) != 1 || gone.Keys[0] != packKey(t) {
					t.Fatalf("a new name: %v", err)
				}
				if r, err := m.origin.Get(t.Context(), first.Kind, "x"); err != nil || !r.Tombstone {
					t.Errorf("it is there: %+v, %v", r.Envelope, err)
				}
				first.Since = w.clock() // as if it had been there
				r, err := m.Commit(t.Context(), first)
				if err != nil {
					t.Fatal(err)
				}
				second.Base = &r
				if _, err := m.Commit(t.Context(), second); !errors.Is(err, content.Gone) {
					t.Fatalf("another version: %v", err)
				}
				now, err := m.origin.Get(t.Context(), first.Kind, "x")
				if err != nil || now.Version != r.Version+2 || string(now.Body) != string(r.Body) {
					t.Errorf("what was there before is not: version %d, %v", now.Version, err)
				}
				second.Damaged, second.Base = true, &now
				if _, err := m.Commit(t.Context(), second); !errors.Is(err, content.Gone) {
					t.Errorf("one that may lack something: %v", err)
				}
				if now, err = m.origin.Get(t.Context(), first.Kind, "x"); err != nil || string(now.Body) != string(second.Body) {
					t.Errorf("it is not there: %v", err)
				}
			})
		}
	}
}

// TestWhatARecordNamesIsNoGarbage: its tombstones go.
func TestWhatARecordNamesIsNoGarbage(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
	swept.Tombstone(t, w.store, false, packKey(t))
	ch := w.image(t, "x", content.Mesh(), 1)
	ch.Since = time.Time{}
	if _, err := m.Commit(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	if left := w.store.Keys("garbage/"); len(left) != 1 {
		t.Fatal(left)
	}
	o, _, err := bucket.ReadAll(t.Context(), w.store, w.store.Keys("garbage/")[0], 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var b struct {
		Delete []string `cbor:"delete"`
	}
	if err := w.codec.Unmarshal(o, &b); err == nil && len(b.Delete) > 0 {
		t.Errorf("it has a tombstone: %v", b.Delete)
	}
}

// TestTheStoresClockTells: what was put within a minute before the record landed is not looked at, by no clock but the
// store's.
func TestTheStoresClockTells(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
	swept.Collect(t, w.store, packKey(t))
	for i, x := range []struct {
		store, node time.Duration // that pass
		gone        bool
	}{{0, 0, false}, {50 * time.Second, 48 * time.Hour, false}, {2 * time.Minute, 0, true}, {48 * time.Hour, 0, true}} {
		ch := w.image(t, string(rune('a'+i)), content.Mesh(), byte(i))
		ch.Since = w.clock()
		w.later.Add(int64(x.store))
		lists := w.store.Count(mem.List)
		_, err := m.Commit(t.Context(), ch)
		if errors.Is(err, content.Gone) != x.gone || err != nil && !x.gone {
			t.Errorf("after %s: %v", x.store, err)
		}
		if !x.gone && w.store.Count(mem.List) != lists {
			t.Errorf("after %s: it was looked", x.store)
		}
	}
}

// TestNothingIsTakenForGrantedTwice: where a commit can't see whether what it names is there, the next one over it does,
// also after a start; whether the record was written and that not known, or the look failed.
func TestNothingIsTakenForGrantedTwice(t *testing.T) {
	for name, fault := range map[string]func(put bool, c mem.Call) mem.Fault{
		"the look fails": func(_ bool, c mem.Call) mem.Fault {
			if c.Op == mem.List {
				return mem.Fault{Err: content.ErrUnavailable}
			}
			return mem.Fault{}
		},
		"the reply is lost, and the store is away": func(put bool, c mem.Call) mem.Fault {
			if put {
				return mem.Fault{Err: content.ErrUnavailable}
			}
			return mem.Fault{Err: bucket.ErrUnknown, Applied: true}
		},
	} {
		for _, starts := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
				ch := w.image(t, "x", content.Mesh(), 1)
				ch.Since = time.Time{}
				put := false
				failing := func(c mem.Call) mem.Fault {
					f := fault(put, c)
					put = put || c.Op == mem.Put
					return f
				}
				w.fault.Store(&failing)
				if _, err := m.Commit(t.Context(), ch); err == nil {
					t.Fatal("success")
				}
				w.fault.Store(nil)
				swept.Collect(t, w.store, packKey(t))
				if starts {
					m.restart(t)
				}
				k, err := m.Lookup(t.Context(), ch.Kind, "x", true)
				if err != nil {
					t.Fatal(err)
				}
				ch.Base, ch.Since = &k.Record, w.clock()
				if _, err := m.Commit(t.Context(), ch); !errors.Is(err, content.Gone) {
					t.Errorf("the same again: %v", err)
				}
				w.again(t)
				k, err = m.Lookup(t.Context(), ch.Kind, "x", true)
				if ch.Base = &k.Record; err != nil {
					t.Fatal(err)
				}
				if _, err := m.Commit(t.Context(), ch); err != nil {
					t.Errorf("once it is there: %v", err)
				}
			})
		}
	}
}

// TestSegmentsOfOthersStay: a fork or a snapshot names segments and tails of another volume; those of a volume's own journal
// nobody collects behind its record.
func TestSegmentsOfOthersStay(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RoleNode, "a")
	parent := content.VolumeID{7}
	ref := content.SegmentRef{Volume: parent, Epoch: 1, Through: content.Position{Number: 1, Seq: 5}, Bytes: 3}
	run := content.SegmentRef{Volume: parent, Epoch: 2, After: ref.Through, Through: content.Position{Number: 3, Seq: 9}, Bytes: 6, Tails: 2}
	second := run
	second.After.Number = 2
	for _, key := range []string{ref.Key(), run.TailKey(), second.TailKey()} {
		if _, err := w.store.Put(t.Context(), key, bucket.Bytes([]byte("abc")), bucket.IfAbsent()); err != nil {
			t.Fatal(err)
		}
	}
	fork := func(id content.VolumeID) error {
		body, err := catalog.Volume{ID: id, Policy: catalog.PolicyLocal, Size: 1 << 30, Folded: catalog.Folded{Segments: []content.SegmentRef{ref, run}}, State: catalog.Attached}.Encode(w.codec)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.Commit(t.Context(), catalog.Change{Kind: content.KindVolume, Name: "fork" + id.String()[:4], Farm: "a", Body: body})
		return err
	}
	if err := fork(content.VolumeID{1}); err != nil {
		t.Error(err)
	}
	for i, key := range []string{second.TailKey(), ref.Key()} {
		swept.Collect(t, w.store, key)
		if err := fork(content.VolumeID{byte(i + 2)}); !errors.Is(err, content.Gone) {
			t.Errorf("without %s: %v", key, err)
		}
	}
	if err := fork(parent); err != nil {
		t.Errorf("its own: %v", err)
	}
}

// TestAMemberWithoutAnOrigin: what its record names is seen to by who writes that, and first.
func TestAMemberWithoutAnOrigin(t *testing.T) {
	w := newWorld(t)
	helper := w.member(t, t.TempDir(), trust.RoleAdmin, "a")
	m := w.member(t, filepath.Join(t.TempDir(), "m"), trust.RoleNode, "a")
	m.origin = nil
	m.submit = func(s Submission) (Answer, error) { return helper.CommitFor(t.Context(), m.self(), s) }
	swept.Collect(t, w.store, packKey(t))
	if _, err := m.Commit(t.Context(), w.volume(t, "v", "a", 1)); !errors.Is(err, content.Gone) {
		t.Errorf("%v", err)
	}
	if r, err := helper.origin.Get(t.Context(), content.KindVolume, "v"); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("it is there: %+v, %v", r.Envelope, err)
	}
	w.again(t)
	if _, err := m.Commit(t.Context(), w.volume(t, "v", "a", 1)); err != nil {
		t.Error(err)
	}
}
