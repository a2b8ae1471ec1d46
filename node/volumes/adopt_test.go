package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// around is a registry that does something around a commit of a volume's record.
type around struct {
	*store
	commit func(do func() (catalog.Record, error)) (catalog.Record, error)
}

func (x around) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	do := func() (catalog.Record, error) { return x.store.Commit(ctx, ch) }
	if ch.Kind != content.KindVolume {
		return do()
	}
	return x.commit(do)
}

// returning is a volume that left node a for b, and is about to come back: each has written
// what the bucket has not.
type returning struct {
	*pair
	left, now []byte // what a has of it alone, and what the bucket has of b's
}

func newReturning(t *testing.T) *returning {
	p := newPair(t)
	for _, w := range []*world{p.a, p.b} { // nobody does errands here
		w.cfg.Call = func(context.Context, trust.PublicKey, string, []byte) ([]byte, error) { return nil, nil }
	}
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 10, 1)
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
		t.Fatal(err)
	}
	r := &returning{pair: p, left: bytes.Clone(shadow)}
	p.a.fill(t, "disk", r.left, 10, 2)
	p.a.flush(t, "disk")
	p.b.put(t, "disk", Spec{Takeover: true})
	for n := range uint64(3) { // three segments
		p.b.fill(t, "disk", shadow, 10, 3+n)
		if err := p.b.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
			t.Fatal(err)
		}
	}
	r.now = shadow
	return r
}

// leaves has a know that the volume is b's.
func (r *returning) leaves(t *testing.T) {
	t.Helper()
	if err := r.a.device("disk").happen(t.Context(), right.Due{}); !errors.Is(err, content.ErrFenced) {
		t.Fatal(err)
	}
	r.a.giveUpLost(t.Context())
}

// whole fails unless w serves the volume as it is now, for writing, and what it had of it
// alone is a snapshot.
func (r *returning) whole(t *testing.T, w *world) {
	t.Helper()
	if got := w.state(t, "disk"); got != terms.StateAttached {
		view, _ := w.Get("disk")
		t.Fatalf("it is %s: %s", got, view.Detail)
	}
	w.is(t, "disk", r.now)
	if err := w.device("disk").vol.WriteAt(t.Context(), make([]byte, 512), 0, true); err != nil {
		t.Error(err)
	}
	w.orphans.Keep(t.Context())
	if !bytes.Equal(w.exported(t, "snapshot:disk@e1-orphan"), r.left) {
		t.Error("the orphan has other bytes")
	}
	if found, err := os.ReadDir(w.cfg.Dir); err != nil || strings.Contains(fmt.Sprint(found), halfMade) {
		t.Errorf("left: %v, %v", found, err)
	}
}

const halfMade = ".new"

// TestTakenBackBeforeItIsKnownToBeLost: what a node has of a volume alone, which it takes
// back before it knows that another took it, is an orphan with a name all the same.
func TestTakenBackBeforeItIsKnownToBeLost(t *testing.T) {
	r := newReturning(t)
	if _, err := r.a.Detach(t.Context(), "disk", true); err != nil {
		t.Fatal(err)
	}
	r.a.put(t, "disk", Spec{Takeover: true})
	r.whole(t, r.a)
}

// TestLostReplyToATakeover: the commit of a takeover, or of an attach of what was released,
// fails before or after it has arrived, and the origin answers at once again or later. Who
// asks again has the volume, with all that is in it.
func TestLostReplyToATakeover(t *testing.T) {
	for _, applied := range []bool{true, false} {
		for _, away := range []bool{false, true} {
			for _, restarted := range []bool{false, true} {
				for _, known := range []bool{false, true} {
					t.Run(fmt.Sprintf("applied %t, away %t, restarted %t, known %t", applied, away, restarted, known), func(t *testing.T) {
						r := newReturning(t)
						if known {
							r.leaves(t)
						} else if _, err := r.a.Detach(t.Context(), "disk", true); err != nil {
							t.Fatal(err)
						}
						lost := true
						r.a.cfg.Registry = around{r.store, func(do func() (catalog.Record, error)) (catalog.Record, error) {
							if !lost {
								return do()
							}
							if lost = false; applied {
								if _, err := do(); err != nil {
									return catalog.Record{}, err
								}
							}
							r.store.down = away
							return catalog.Record{}, bucket.ErrUnknown
						}}
						_, _, err := r.a.Put(t.Context(), "disk", Spec{Takeover: true, Transport: terms.NBD})
						if (err != nil) != away {
							t.Errorf("the first try: %v", err)
						}
						if away && (r.a.state(t, "disk") != terms.StateOpening || len(r.a.Failing()) > 0) {
							t.Errorf("while nobody can tell: it is %s", r.a.state(t, "disk"))
						}
						r.store.down = false
						if restarted {
							r.a = r.a.again(t)
							r.join(r.a)
							r.a.openAll(t.Context())
						}
						r.a.put(t, "disk", Spec{Takeover: !applied})
						r.whole(t, r.a)
					})
				}
			}
		}
	}
}

// life is what a node's disk and the records were at some moment.
type life struct {
	dir     string
	records map[string]catalog.Record
	mine    bool // the record names the node
}

// TestKilledInATakeover kills a node at each step in which it takes a volume back of which it
// has a folder: the next start, or the next takeover, completes that or begins anew, by what
// the record says, and nothing is lost.
func TestKilledInATakeover(t *testing.T) {
	r := newReturning(t)
	r.leaves(t)
	lives := map[string]life{}
	save := func(name string, mine bool) life {
		dir, err := os.MkdirTemp("", "")
		if err == nil {
			err = os.CopyFS(filepath.Join(dir, "volumes"), os.DirFS(r.a.cfg.Dir))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		lives[name] = life{dir, maps.Clone(r.store.records), mine}
		return lives[name]
	}
	asked := 0
	r.a.cfg.Origin = func() (bucket.Bucket, error) {
		save(fmt.Sprintf("adopting %d", asked), false)
		asked++
		return r.shelf.bucket, nil
	}
	r.a.cfg.Registry = around{r.store, func(do func() (catalog.Record, error)) (catalog.Record, error) {
		if asked = -1; len(lives) > 3 {
			save("adopted", false)
		}
		record, err := do()
		save("committed", true)
		aside := save("set aside", true) // the other folder has stepped aside, and this has no name yet
		id, volumes := r.id(t), filepath.Join(aside.dir, "volumes")
		if err := errors.Join(os.MkdirAll(filepath.Join(volumes, "orphans"), 0o700), os.Rename(filepath.Join(volumes, id), filepath.Join(volumes, "orphans", id+"-1"))); err != nil {
			t.Fatal(err)
		}
		named := save("named", true) // it has, and does not know that it is the volume
		volumes = filepath.Join(named.dir, "volumes")
		if err := errors.Join(os.MkdirAll(filepath.Join(volumes, "orphans"), 0o700), os.Rename(filepath.Join(volumes, id), filepath.Join(volumes, "orphans", id+"-1")),
			os.Rename(filepath.Join(volumes, id+halfMade), filepath.Join(volumes, id))); err != nil {
			t.Fatal(err)
		}
		r.a.cfg.Origin = func() (bucket.Bucket, error) { return r.shelf.bucket, nil }
		return record, err
	}}
	r.a.put(t, "disk", Spec{Takeover: true})
	save("kept", true)
	r.whole(t, r.a)
	if len(lives) < 9 {
		t.Fatalf("%d steps were seen", len(lives))
	}
	for name, l := range lives {
		for _, begun := range []string{"a start", "a start without the origin"} {
			t.Run(name+", "+begun, func(t *testing.T) {
				r.lives(t, l, begun)
			})
		}
	}
}

func (r *returning) id(t *testing.T) string {
	t.Helper()
	body, err := r.store.body("disk")
	if err != nil {
		t.Fatal(err)
	}
	return body.ID.String()
}

// lives starts a node with what another life of it has left.
func (r *returning) lives(t *testing.T, l life, begun string) {
	dir, err := os.MkdirTemp("", "")
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(l.dir))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := startWorld(t, dir)
	p := &pair{a: w, b: r.b, shelf: r.shelf, store: &store{records: maps.Clone(l.records)}}
	p.join(w)
	w.cfg.Call = func(context.Context, trust.PublicKey, string, []byte) ([]byte, error) { return nil, nil }
	p.store.down = begun == "a start without the origin"
	w.openAll(t.Context())
	p.store.down = false
	w.now = w.now.Add(tryAfterMax)
	w.serveLater(t.Context(), "disk")
	if l.mine {
		(&returning{p, r.left, r.now}).whole(t, w) // without anybody's asking
		return
	}
	if body, err := p.store.body("disk"); err != nil || body.Holder != r.b.cfg.Self {
		t.Fatalf("the start took it: %+v, %v", body, err)
	}
	if _, _, err := w.Put(t.Context(), "disk", Spec{Transport: terms.NBD}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("without a takeover: %v", err)
	}
	w.put(t, "disk", Spec{Takeover: true})
	(&returning{p, r.left, r.now}).whole(t, w)
}

// TestTakeoverBesideACopy: what people have put under the name that a takeover uses stays,
// and the takeover says so.
func TestTakeoverBesideACopy(t *testing.T) {
	r := newReturning(t)
	r.leaves(t)
	e, _ := r.a.index.Get("disk")
	beside := r.a.index.Path(e) + halfMade
	if err := os.CopyFS(beside, os.DirFS(r.a.index.Path(e))); err != nil {
		t.Fatal(err)
	}
	want := files(t, beside)
	if _, _, err := r.a.Put(t.Context(), "disk", Spec{Takeover: true, Transport: terms.NBD}); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("a takeover: %v", err)
	}
	if got := files(t, beside); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error("the copy is another")
	}
	if err := os.RemoveAll(beside); err != nil {
		t.Fatal(err)
	}
	r.a.put(t, "disk", Spec{Takeover: true})
	r.whole(t, r.a)
}

// TestTakeoverThatCantKeepItsFolder: where the record names this node, and the folder could
// not get its name, who asks again has the volume.
func TestTakeoverThatCantKeepItsFolder(t *testing.T) {
	r := newReturning(t)
	r.leaves(t)
	inTheWay := filepath.Join(r.a.cfg.Dir, "orphans")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.a.Put(t.Context(), "disk", Spec{Takeover: true, Transport: terms.NBD}); err == nil {
		t.Fatal("nothing stepped aside")
	}
	if body, err := r.store.body("disk"); err != nil || body.Holder != r.a.cfg.Self {
		t.Fatalf("%+v, %v", body, err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	r.a.put(t, "disk", Spec{})
	r.whole(t, r.a)
}
