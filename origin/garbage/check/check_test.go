package check

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/origins"
	"github.com/grangemesh/grange/simulations/soak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const chunks = content.MapFanout + 200 // two leaves under a top node

// world is an origin with some names:
//
//	image:one   has a tag, image:same
//	image:near  shares all chunks with it but one
//	image:other shares none
//	volume:web and its snapshot 1 name segments, and volume:db some that lie in tails
type world struct {
	*origins.Origin
	one, near, other pack.Head
	web              []content.SegmentRef
	tails            []string
}

func newWorld(t *testing.T, b bucket.Bucket) *world {
	w := &world{Origin: origins.New(t, b)}
	w.one = w.Import("one", origins.Chunks(1, chunks))
	w.Name(content.KindTag, "same", w.one)
	w.near = w.Import("near", near())
	w.other = w.Import("other", origins.Chunks(2, 50))
	web, db := content.VolumeID{1}, content.VolumeID{2}
	w.web = w.Segments(web, content.Position{}, 1000, 300_000, 50)
	w.Volume("web", web, w.web...)
	w.Snapshot("web", 1, web, w.web[:2]...)
	run, tails := w.Tails(db, content.Position{}, 10, 20_000, 30)
	w.Volume("db", db, run)
	w.tails = tails
	return w
}

func near() [][]byte {
	all := origins.Chunks(1, chunks)
	all[chunks-1] = origins.Chunk(3, 0)
	return all
}

func (w *world) check(t *testing.T, share float64) Report {
	t.Helper()
	r, err := Run(t.Context(), Config{Source: w.Source(), ReadData: share})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func names(r Report) (out []string) {
	for _, h := range r.Hurt {
		out = append(out, h.Name)
	}
	return out
}

func TestAllIsWell(t *testing.T) {
	origins.Each(t, func(t *testing.T, b bucket.Bucket) {
		w := newWorld(t, b)
		r := w.check(t, 1)
		// What is shared is read once: 50 chunks of other, one of near, and of the two maps all nodes but one leaf.
		if len(r.Hurt) > 0 || r.HurtNames > 0 || r.Chunks != chunks+1+50 || r.Nodes != 3+2+1 || r.Roots != 3 || r.Segments != 4 || r.SegmentBytes != 1000+300_000+50+20_040 || r.Unread != 0 || r.Records != 7 {
			t.Fatalf("%+v", r)
		}
	})
}

// first returns the pack that a root's first chunk lies in, and a place in the middle of that.
func (w *world) first(t *testing.T, h pack.Head) (key string, at uint32) {
	t.Helper()
	r := pack.NewReader(w)
	pair, level := h.Top(), h.Root.Shape().Depth()
	for {
		n, err := r.ReadNode(t.Context(), h.Scope, level, pair)
		if err != nil {
			t.Fatal(err)
		}
		if level == 1 {
			where, _ := n.Page.Child(0)
			return where.Pack.Key(), where.Offset + where.Length/2
		}
		level, pair = level-1, func() pack.Pair { p, _ := n.Page.ChildPair(n.Node, 0); return p }()
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 1; return b }
}

func gone([]byte) []byte { return nil }

// TestEachDamageIsFound: whatever is done to an origin, all names that it hurts are told, and no other; and what was
// imported again is whole.
func TestEachDamageIsFound(t *testing.T) {
	lineage := []string{"image:near", "image:one", "image:same"}
	for name, c := range map[string]struct {
		damage  func(t *testing.T, w *world)
		hurt    []string
		what    string
		missing bool
		suspect bool
	}{
		"a deleted pack": {damage: func(t *testing.T, w *world) {
			key, _ := w.first(t, w.one)
			w.Damage(key, gone)
		}, hurt: lineage, what: "chunk 0 ", missing: true},
		"a truncated pack": {damage: func(t *testing.T, w *world) {
			key, _ := w.first(t, w.one)
			w.Damage(key, func(b []byte) []byte { return b[:len(b)/3] })
		}, hurt: lineage, what: "the pack has only", suspect: true},
		"a flipped byte": {damage: func(t *testing.T, w *world) {
			key, at := w.first(t, w.one)
			w.Damage(key, flip(int(at)))
		}, hurt: lineage, what: "chunk 0 ", suspect: true},
		"a flipped byte of the end of a pack": {damage: func(t *testing.T, w *world) {
			key, _ := w.first(t, w.one)
			w.Damage(key, func(b []byte) []byte { b[len(b)-200] ^= 1; return b })
		}, hurt: lineage, what: "end of the pack " + string(content.KeyPacks), suspect: true},
		"a flipped byte of a map": {damage: func(_ *testing.T, w *world) {
			w.Damage(w.near.Node.Pack.Key(), flip(int(w.near.Node.Offset)))
		}, hurt: lineage[:1], what: "map node 2/0 ", suspect: true},
		"a flipped byte of a manifest": {damage: func(_ *testing.T, w *world) {
			w.Damage(w.other.Manifest.Pack.Key(), flip(int(w.other.Manifest.Offset)))
		}, hurt: []string{"image:other"}, what: "manifest ", suspect: true},
		"a record with a bad signature": {damage: func(_ *testing.T, w *world) {
			w.Damage("records/image/other", func(b []byte) []byte {
				b[bytes.Index(b, []byte("commit"))+len("commit")+3] ^= 1
				return b
			})
		}, hurt: []string{"image:other"}, what: "signature"},
		"a record that is none": {damage: func(_ *testing.T, w *world) {
			w.Damage("records/image/other", func(b []byte) []byte { return b[:len(b)-9] })
		}, hurt: []string{"image:other"}, what: "record"},
		"a missing segment": {damage: func(_ *testing.T, w *world) { w.Damage(w.web[1].Key(), gone) },
			hurt: []string{"snapshot:web@1", "volume:web"}, what: w0, missing: true},
		"a flipped byte of a segment": {damage: func(_ *testing.T, w *world) { w.Damage(w.web[2].Key(), flip(7)) },
			hurt: []string{"volume:web"}, what: w0},
		"a truncated segment": {damage: func(_ *testing.T, w *world) {
			w.Damage(w.web[0].Key(), func(b []byte) []byte { return b[:len(b)-1] })
		}, hurt: []string{"snapshot:web@1", "volume:web"}, what: w0},
		"a missing tail": {damage: func(_ *testing.T, w *world) { w.Damage(w.tails[1], gone) },
			hurt: []string{"volume:db"}, what: "3 tails of volume", missing: true},
		"a flipped byte of a tail": {damage: func(_ *testing.T, w *world) { w.Damage(w.tails[1], flip(5000)) },
			hurt: []string{"volume:db"}, what: "3 tails of volume"},
	} {
		t.Run(name, func(t *testing.T) {
			origins.Each(t, func(t *testing.T, b bucket.Bucket) {
				w := newWorld(t, b)
				c.damage(t, w)
				r := w.check(t, 1)
				if !slices.Equal(names(r), c.hurt) || r.HurtNames != int64(len(c.hurt)) || c.suspect != (len(r.Suspect) > 0) {
					t.Fatalf("hurt are %v, suspect %v; want %v: %+v", names(r), r.Suspect, c.hurt, r.Hurt)
				}
				for _, h := range r.Hurt {
					if !strings.Contains(h.Damages[0], c.what) || len(h.Damages) > DamagesMax || c.missing != (h.Missing > 0) || c.missing == (h.Bad > 0) {
						t.Errorf("%+v, want %q", h, c.what)
					}
					if h.Key == "records/image/other" && strings.HasPrefix(c.what, "record") && h.Bad != 1 {
						t.Errorf("one record is damaged: %+v", h)
					}
				}
				w.mend(t, r)
			})
		})
	}
}

const w0 = "segment journals/01"

// mend does what one does about a report: suspect packs are marked, and all images imported again.
func (w *world) mend(t *testing.T, r Report) {
	t.Helper()
	for _, id := range r.Suspect {
		if err := index.Suspect(t.Context(), w, id); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range r.Hurt {
		if strings.HasPrefix(h.Name, "image:") && r.HurtNames == 1 { // a damaged record is no base
			w.Damage(h.Key, gone)
		}
	}
	w.one = w.Import("one", origins.Chunks(1, chunks))
	w.Name(content.KindTag, "same", w.one)
	w.Import("near", near())
	w.Import("other", origins.Chunks(2, 50))
	for _, h := range w.check(t, 1).Hurt {
		if strings.HasPrefix(h.Name, "image:") {
			t.Errorf("after its import again: %+v", h)
		}
	}
}

// TestShares: what is missing or too short is found by the list alone, what lies beside the chunks by
// reading; and a share of the data is a share.
func TestShares(t *testing.T) {
	in := mem.New(t, mem.Config{MayReadDeleted: true})
	w := newWorld(t, in)
	before := in.Count(mem.Get)
	r := w.check(t, 0)
	if r.Chunks != 0 || r.Unread != chunks+200+50 || len(r.Hurt) > 0 {
		t.Fatalf("%+v", r)
	}
	if n := in.Count(mem.Get) - before; n > 30 {
		t.Errorf("%d reads", n)
	}
	total, some := uint64(0), map[uint64]bool{}
	for seed := range uint64(40) {
		r, err := Run(t.Context(), Config{Source: w.Source(), ReadData: 0.25, Seed: seed})
		if err != nil || len(r.Hurt) > 0 {
			t.Fatalf("%+v %v", r, err)
		}
		total, some[r.Chunks] = total+r.Chunks, true
	}
	if share := float64(total) / 40 / (chunks + 51); share < 0.1 || share > 0.45 || len(some) < 2 {
		t.Errorf("a share of %f was read, want a quarter", share)
	}
	key, _ := w.first(t, w.one)
	whole := w.Object(key)
	for name, cut := range map[string]int{"missing": 0, "too short": len(whole) / 3} {
		w.Damage(key, func(b []byte) []byte { return b[:cut] })
		if cut == 0 {
			w.Damage(key, gone)
		}
		if r := w.check(t, 0); len(r.Hurt) != 3 {
			t.Errorf("%s: %v", name, names(r))
		}
		if cut == 0 {
			w.Add(key, whole)
		} else {
			w.Damage(key, func([]byte) []byte { return whole })
		}
	}
	if _, err := Run(t.Context(), Config{Source: w.Source(), ReadData: 1.5}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a share of 1.5: %v", err)
	}
}

// TestPacksThatWereRewrittenAreFollowed: chunks are read where they went, run by run, and damage there is told.
func TestPacksThatWereRewrittenAreFollowed(t *testing.T) {
	in := mem.New(t, mem.Config{MayReadDeleted: true})
	w := newWorld(t, in)
	key, _ := w.first(t, w.one)
	id, err := pack.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	to := w.Rewrite(id)
	before := in.Count(mem.Get)
	if r := w.check(t, 1); len(r.Hurt) > 0 || r.Chunks != chunks+51 {
		t.Fatalf("%+v", r)
	}
	if n := in.Count(mem.Get) - before; n > 60 {
		t.Errorf("%d reads", n)
	}
	w.Damage(to.Key(), flip(100))
	if r := w.check(t, 1); len(r.Hurt) != 3 || !slices.Equal(r.Suspect, []pack.ID{to}) || !strings.Contains(r.Hurt[0].Damages[0], to.Key()) {
		t.Fatalf("%+v", r)
	}
	w.Damage(to.Key(), gone)
	for _, share := range []float64{0, 1} {
		if r := w.check(t, share); len(r.Hurt) != 3 || r.Hurt[0].Missing == 0 {
			t.Fatalf("%+v", r)
		}
	}
}

// TestDoubtIsNoDamage: a store that does not answer, or refuses to be read, ends the run, which goes on where it was.
func TestDoubtIsNoDamage(t *testing.T) {
	for _, refusal := range []error{content.ErrUnavailable, content.ErrForbidden} {
		away := ""
		in := mem.New(t, mem.Config{Fault: func(c mem.Call) (f mem.Fault) {
			if away != "" && c.Op == mem.Get && strings.HasPrefix(c.Key, away) {
				f.Err = refusal
			}
			return f
		}})
		w := newWorld(t, in)
		whole := w.check(t, 1)
		for _, away = range []string{"packs/", "journals/", "records/"} {
			first, err := Run(t.Context(), Config{Source: w.Source(), ReadData: 1})
			if !errors.Is(err, content.ErrUnavailable) || len(first.Hurt) > 0 {
				t.Fatalf("%s: %+v %v", away, first, err)
			}
			away = ""
			rest, err := Run(t.Context(), Config{Source: w.Source(), ReadData: 1, After: first.Last})
			if err != nil || len(rest.Hurt) > 0 || first.Records+rest.Records != whole.Records || rest.Last != whole.Last {
				t.Fatalf("%+v, then %+v, %v", first, rest, err)
			}
		}
	}
}

// TestGoesOn: ended at any time, a run is gone on with behind the last key that it told, and all that is hurt is found.
func TestGoesOn(t *testing.T) {
	in := mem.New(t, mem.Config{MayReadDeleted: true})
	w := newWorld(t, in)
	w.Damage(w.web[1].Key(), gone)
	want := names(w.check(t, 1))
	for n := range 40 {
		ctx, cancel := context.WithCancel(t.Context())
		told, last := 0, ""
		first, err := Run(ctx, Config{Source: w.Source(), ReadData: 1, Progress: func(r Report) {
			if told++; told == n {
				cancel()
			}
			last = r.Last
		}})
		cancel()
		if err == nil {
			continue
		}
		if !errors.Is(err, context.Canceled) || first.Last != last {
			t.Fatalf("told %q, returned %q: %v", last, first.Last, err)
		}
		rest, err := Run(t.Context(), Config{Source: w.Source(), ReadData: 1, After: first.Last})
		if got := slices.Concat(names(first), names(rest)); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, want %v; %v", got, want, err)
		}
	}
}

// TestNamesThatChangeMeanwhile: what an older version of a name needed may be gone.
func TestNamesThatChangeMeanwhile(t *testing.T) {
	in := mem.New(t, mem.Config{MayReadDeleted: true})
	w := newWorld(t, in)
	changed := false
	r, err := Run(t.Context(), Config{Source: w.Source(), Progress: func(Report) {
		if changed {
			return
		}
		changed = true
		w.Volume("web", content.VolumeID{3}, w.Segments(content.VolumeID{3}, content.Position{}, 10)...)
		w.Remove(content.KindSnapshot, "web@1")
		for _, ref := range w.web {
			w.Damage(ref.Key(), gone)
		}
	}})
	if err != nil || len(r.Hurt) > 0 {
		t.Fatalf("%+v %v", r, err)
	}
}

// TestAnyFlippedByte: wherever a byte is flipped, each name that can't be read any more is told, and no other is that does
// not need the object.
func TestAnyFlippedByte(t *testing.T) {
	in := mem.New(t, mem.Config{})
	w := newWorld(t, in)
	all := slices.Concat(w.Keys("packs/"), w.Keys("journals/"), w.Keys("records/"))
	needs := map[string][]string{}
	for name, h := range map[string]pack.Head{"image:one": w.one, "image:same": w.one, "image:near": w.near, "image:other": w.other} {
		for _, id := range w.Packs(h) {
			needs[name] = append(needs[name], id.Key())
		}
	}
	found := 0
	for n := range soak.Of(60, 3000) {
		key := all[rand.IntN(len(all))]
		at := rand.IntN(len(w.Object(key)))
		in.Corrupt(key, func(b []byte) { b[at] ^= 1 })
		r := w.check(t, 1)
		got := names(r)
		for _, h := range r.Hurt {
			if of := needs[h.Name]; of != nil && h.Key != key && !slices.Contains(of, key) {
				t.Fatalf("round %d, byte %d of %s: %+v", n, at, key, h)
			}
		}
		for name, h := range map[string]pack.Head{"image:one": w.one, "image:near": w.near, "image:other": w.other} {
			if err := w.read(t, h); err != nil && !slices.Contains(got, name) {
				t.Fatalf("round %d, byte %d of %s: %s can't be read, %v, and %v are hurt", n, at, key, name, err, got)
			}
		}
		if !strings.HasPrefix(key, "packs/") && len(got) == 0 {
			t.Fatalf("round %d, byte %d of %s: nobody is hurt", n, at, key)
		}
		found += len(got)
		in.Corrupt(key, func(b []byte) { b[at] ^= 1 })
	}
	if found == 0 {
		t.Fatal("nothing was ever hurt")
	}
}

// read reads all of an image, in the plainest way.
func (w *world) read(t *testing.T, h pack.Head) error {
	t.Helper()
	r := pack.NewReader(w)
	var node func(level int, at pack.Pair) error
	node = func(level int, at pack.Pair) error {
		n, err := r.ReadNode(t.Context(), h.Scope, level, at)
		for i := 0; err == nil && i < n.Page.Len(); i++ {
			where, _ := n.Page.Child(i)
			if pair, isNode := n.Page.ChildPair(n.Node, i); isNode {
				err = node(level-1, pair)
			} else {
				_, err = pack.ReadMoved(t.Context(), r, []pack.Extent{{CID: n.Node.Entry(i), Location: where}})
			}
		}
		return err
	}
	return node(h.Root.Shape().Depth(), h.Top())
}
