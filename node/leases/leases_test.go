package leases

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/swept"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a node that reads what a test says.
type world struct {
	*Leases
	store  *mem.Bucket
	names  *records.Names
	origin *catalog.Catalog
	want   []Want
	away   bool
	fault  func(mem.Call) mem.Fault
	clock  time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{clock: time.Now()}
	now := func() time.Time { return w.clock }
	w.store = mem.New(t, mem.Config{Now: now, MayReadDeleted: true, Fault: func(c mem.Call) mem.Fault {
		if w.fault == nil {
			return mem.Fault{}
		}
		return w.fault(c)
	}})
	mesh, admin, key := trust.NewPrivateKey(), trust.NewPrivateKey(), trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: admin.Public(), Role: trust.RoleAdmin, Farm: "a"}, w.clock)
	if err == nil {
		chain, err = trust.Signer{Key: admin, Chain: chain}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleNode, Farm: "a"}, w.clock)
	}
	if err != nil {
		t.Fatal(err)
	}
	signer, verifier := trust.Signer{Key: key, Chain: chain}, trust.NewVerifier(mesh.Public())
	if w.origin, err = catalog.New(catalog.Config{Bucket: w.store, Verifier: verifier, Signer: signer, Now: now}); err != nil {
		t.Fatal(err)
	}
	here := func() *catalog.Catalog {
		if w.away {
			return nil
		}
		return w.origin
	}
	w.names, err = records.New(records.Config{
		Dir: t.TempDir(), Reader: here, Writer: here, Lost: func(error) {}, Verifier: verifier, Signer: signer,
		Ask: func(context.Context, records.Question, int) []records.Answer { return nil },
		Submit: func(context.Context, records.Submission) (records.Answer, error) {
			return records.Answer{}, content.ErrUnavailable
		},
		Learn: func(records.Known) {}, Forget: func(content.CID, content.Scope) {}, Codec: content.NewCodec(), Now: now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.names.Close() })
	w.start(key.Public())
	return w
}

// start is one of the node.
func (w *world) start(self trust.PublicKey) {
	w.Leases = New(Config{
		Self: self, Farm: "a", Wanted: func() []Want { return w.want }, Origin: func() bool { return !w.away },
		List: func(ctx context.Context, kind content.Kind, begin string) (out []catalog.Record) {
			page, _ := w.names.List(ctx, kind, begin, "", 1000)
			for _, k := range page {
				out = append(out, k.Record)
			}
			return out
		},
		Commit: w.names.Commit, Codec: content.NewCodec(), Now: func() time.Time { return w.clock }, Log: slog.New(slog.DiscardHandler),
	})
}

// reads is content at the origin, of a pack of its own, that is read for something.
func (w *world) reads(t *testing.T, what string, seed byte) Want {
	t.Helper()
	b, err := build.New(t.Context(), build.Config{Bucket: w.store, Scope: content.Mesh(), Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	chunk := make([]byte, content.ChunkSizeDefault)
	chunk[0] = seed
	if err = b.Add(t.Context(), 0, chunk); err != nil {
		t.Fatal(err)
	}
	head, _, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return Want{What: what, Folded: catalog.Folded{Head: &head}, Size: 1 << 20}
}

// kept is what the origin has leases of.
func (w *world) kept(t *testing.T) (what []string) {
	t.Helper()
	for r, err := range w.origin.List(t.Context(), content.KindLease, "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if r.Tombstone {
			continue
		}
		body, err := catalog.DecodeLease(content.NewCodec(), r.Body)
		if err != nil {
			t.Fatal(err)
		}
		what = append(what, body.What)
	}
	slices.Sort(what)
	return what
}

func (w *world) is(t *testing.T, when string, what ...string) {
	t.Helper()
	if got := w.kept(t); !slices.Equal(got, what) {
		t.Errorf("%s: leases of %q, want %q", when, got, what)
	}
}

// TestLeasesAreOfWhatIsRead, from when it begins to be read until it ends; one that looks again and again asks nobody
// meanwhile, and a start leaves them as they are.
func TestLeasesAreOfWhatIsRead(t *testing.T) {
	w := newWorld(t)
	look := func() {
		t.Helper()
		if err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	look()
	w.is(t, "nothing is read")
	a, b := w.reads(t, "volume a", 1), w.reads(t, "mount /b", 2)
	w.want = []Want{a, b}
	look()
	w.is(t, "two are", "mount /b", "volume a")
	puts, lists := w.store.Count(mem.Put), w.store.Count(mem.List)
	look()
	if w.store.Count(mem.Put) != puts || w.store.Count(mem.List) != lists {
		t.Error("it asked once more though nothing has changed")
	}
	w.start(w.cfg.Self)
	look()
	if w.store.Count(mem.Put) != puts {
		t.Error("a start writes what is there")
	}
	w.want[0] = w.reads(t, "volume a", 3) // attached anew
	look()
	w.is(t, "one has changed", "mount /b", "volume a")
	w.want = w.want[1:]
	look()
	w.is(t, "one has ended", "mount /b")
	w.clock = w.clock.Add(compareEvery)
	name := catalog.LeaseName(w.cfg.Self, content.Sum([]byte("mount /b")))
	r, err := w.origin.Get(t.Context(), content.KindLease, name)
	if err == nil {
		_, err = w.names.Commit(t.Context(), catalog.Change{Kind: r.Kind, Name: r.Name, Farm: r.Farm, Base: &r, Delete: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	look()
	w.is(t, "somebody has deleted it", "mount /b")
	w.want = nil
	w.start(w.cfg.Self)
	look()
	w.is(t, "a start that reads nothing")
}

// TestAStartEndsNothing: what was read before a start, and is not taken up again yet, keeps its lease for a while.
func TestAStartEndsNothing(t *testing.T) {
	w := newWorld(t)
	w.want = []Want{w.reads(t, "mount /b", 2)}
	for _, step := range []struct {
		when string
		then func()
		what []string
	}{
		{"it is read", func() {}, []string{"mount /b"}},
		{"it is not taken up yet", func() { w.start(w.cfg.Self); w.began, w.want = w.clock, nil }, []string{"mount /b"}},
		{"it never is", func() { w.clock = w.clock.Add(settleFor) }, nil},
	} {
		step.then()
		if err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.is(t, step.when, step.what...)
	}
}

// TestTheOriginIsAway when something begins to be read, or ends, or fails at each call, applied or not.
func TestTheOriginIsAway(t *testing.T) {
	w := newWorld(t)
	a := w.reads(t, "volume a", 1)
	w.want, w.away = []Want{a}, true
	if err := w.look(t.Context()); err != nil {
		t.Error(err)
	}
	w.is(t, "away")
	w.away = false
	if err := w.look(t.Context()); err != nil {
		t.Error(err)
	}
	w.is(t, "back", "volume a")
	for _, fault := range []mem.Fault{{Err: content.ErrUnavailable}, {Err: bucket.ErrUnknown}, {Err: bucket.ErrUnknown, Applied: true}} {
		for call := range 12 {
			for _, want := range [][]Want{nil, {a}} {
				n := 0
				w.fault = func(mem.Call) mem.Fault {
					if n++; n == call+1 {
						return fault
					}
					return mem.Fault{}
				}
				w.want = want
				_ = w.look(t.Context())
				w.fault = nil
				w.clock = w.clock.Add(compareEvery)
				if err := w.look(t.Context()); err != nil {
					t.Errorf("%v at call %d: %v", fault, call, err)
				}
				if got := w.kept(t); len(got) != len(want) {
					t.Errorf("%v at call %d: leases of %q", fault, call, got)
				}
			}
		}
	}
}

// TestSomeOfItIsGone before there is a lease: that is said while it is read, and what is left of it stays.
func TestSomeOfItIsGone(t *testing.T) {
	w := newWorld(t)
	a := w.reads(t, "volume a", 1)
	swept.Collect(t, w.store, swept.Packs(t, w.store)...)
	w.want = []Want{a}
	if err := w.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.is(t, "it is gone", "volume a")
	if said := w.Damaged()["volume a"]; !strings.Contains(said, "gone") {
		t.Errorf("it says %q", said)
	}
	w.want = nil
	if err := w.look(t.Context()); err != nil || len(w.Damaged()) > 0 {
		t.Errorf("%v, %v", w.Damaged(), err)
	}
}

// TestALeaseTakesTombstonesAway of what is read without a name.
func TestALeaseTakesTombstonesAway(t *testing.T) {
	w := newWorld(t)
	a := w.reads(t, "volume a", 1)
	batch := swept.Tombstone(t, w.store, false, swept.Packs(t, w.store)...)
	w.want = []Want{a}
	if err := w.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := swept.Listed(t, w.store, batch); len(left) > 0 {
		t.Errorf("tombstones of %q are left", left)
	}
	if _, err := pack.NewReader(w.store).ReadManifest(t.Context(), *a.Head); errors.Is(err, content.ErrNotFound) {
		t.Error(err)
	}
}

// TestOneThatCanNotBe keeps none of the others from being.
func TestOneThatCanNotBe(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 300)
	w.want = []Want{{What: "volume blank"}, w.reads(t, "volume a", 2), w.reads(t, long+"1", 3), w.reads(t, long+"2", 4)}
	if err := w.look(t.Context()); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("%v", err)
	}
	w.is(t, "one is of nothing", "volume a", long[:256], long[:256])
}
