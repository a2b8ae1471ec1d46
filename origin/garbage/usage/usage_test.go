package usage

import (
	"errors"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/origins"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(t *testing.T, o *origins.Origin) Report {
	t.Helper()
	r, err := Run(t.Context(), Config{Source: o.Source()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func name(t *testing.T, r Report, name string) Name {
	t.Helper()
	i := slices.IndexFunc(r.Names, func(n Name) bool { return n.Name == name })
	if i < 0 {
		t.Fatalf("no %s in %+v", name, r.Names)
	}
	return r.Names[i]
}

// size is how long some objects are together.
func size(o *origins.Origin, keys ...string) (n int64) {
	for _, key := range keys {
		n += int64(len(o.Object(key)))
	}
	return n
}

func packKeys(ids []pack.ID) (keys []string) {
	for _, id := range ids {
		keys = append(keys, id.Key())
	}
	return keys
}

// TestWhoNeedsWhat: each byte of a pack is its names' own, shared, or nobody's, and roots that several names have count
// once.
func TestWhoNeedsWhat(t *testing.T) {
	origins.Each(t, func(t *testing.T, b bucket.Bucket) {
		o := origins.New(t, b)
		one := o.Import("one", origins.Chunks(1, 300))
		tagged := o.Import("tagged", origins.Chunks(2, 300))
		o.Name(content.KindTag, "tag", tagged)
		more := append(origins.Chunks(1, 300), origins.Chunks(3, 300)...)
		near := o.Import("near", more)
		public := o.Store(content.Public(), origins.Chunks(4, 20))
		o.Name(content.KindImage, "public", public)
		dead := o.Import("gone", origins.Chunks(5, 100))
		o.Remove(content.KindImage, "gone")
		r := run(t, o)

		inOne, inNear := packKeys(o.Packs(one)), packKeys(o.Packs(near))
		both := slices.DeleteFunc(slices.Clone(inOne), func(key string) bool { return !slices.Contains(inNear, key) })
		if n := name(t, r, "image:one"); len(both) == 0 || n.Shared != size(o, both...) || n.Own+n.Shared != size(o, inOne...) || n.Kind != content.KindImage || n.Scope != "mesh" {
			t.Errorf("%+v, want %d shared of %d", n, size(o, both...), size(o, inOne...))
		}
		if n := name(t, r, "image:near"); n.Shared != size(o, both...) || n.Own+n.Shared != size(o, inNear...) || n.Own == 0 {
			t.Errorf("%+v, want %d shared of %d", n, size(o, both...), size(o, inNear...))
		}
		for _, of := range []string{"image:tagged", "image:tag"} {
			if n := name(t, r, of); n.Own != 0 || n.Shared != size(o, packKeys(o.Packs(tagged))...) {
				t.Errorf("%+v", n)
			}
		}
		if n := name(t, r, "image:public"); n.Own != size(o, packKeys(o.Packs(public))...) || n.Shared != 0 || n.Scope != "public" {
			t.Errorf("%+v", n)
		}
		stored := name(t, r, "image:one").Stored + name(t, r, "image:near").Stored + name(t, r, "image:tag").Stored + name(t, r, "image:public").Stored
		if r.Stored != stored || r.Dead.Bytes != size(o, packKeys(o.Packs(dead))...) || r.Live.Bytes+r.Dead.Bytes != size(o, o.Keys("packs/")...) || r.DeadWithin != 0 {
			t.Errorf("%+v", r)
		}
		if n := len(r.Scopes); n != 2 || r.Scopes[0].Scope != "mesh" || r.Scopes[0].Dead != r.Dead || r.Scopes[1].Live.Bytes != name(t, r, "image:public").Own {
			t.Errorf("%+v", r.Scopes)
		}
		if r.Records.Bytes != size(o, o.Keys("records/")...) || r.Records.Objects != 6 || r.Indexes.Bytes != size(o, o.Keys("index/")...) || r.Indexes.Objects == 0 || len(r.Names) != 5 || len(r.Broken) != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// TestDeadWithin: what is dead in packs that are named is told, as far as manifests do.
func TestDeadWithin(t *testing.T) {
	o := origins.New(t, mem.New(t, mem.Config{}))
	o.Import("image", origins.Chunks(1, 300))
	kept := append(origins.Chunks(1, 40), origins.Chunks(2, 1)...)
	o.Import("image", kept) // 40 of some 200 in the first pack
	r := run(t, o)
	if n := name(t, r, "image:image"); r.DeadWithin < 300_000 || r.DeadWithin > n.Own-n.Stored || r.Dead.Bytes == 0 {
		t.Errorf("%+v", r)
	}
}

// TestStubsAreFollowed: what a pack had is where it went.
func TestStubsAreFollowed(t *testing.T) {
	o := origins.New(t, mem.New(t, mem.Config{MayReadDeleted: true}))
	one := o.Import("one", origins.Chunks(1, 300))
	before := name(t, run(t, o), "image:one")
	var stubs int64
	for _, id := range o.Packs(one) {
		o.Rewrite(id)
		stubs += pack.SizeMin
	}
	now := run(t, o)
	n := name(t, now, "image:one")
	if stubs == 0 || now.Dead.Objects != 0 || n.Stored != before.Stored || n.Shared != 0 || n.Own > before.Own+stubs || n.Own < before.Own+stubs-2*content.RecordSizeMax || now.DeadWithin != 0 {
		t.Errorf("%+v, before %+v", now, before)
	}
}

// TestSegments: by the volumes that wrote them, and what of them is named.
func TestSegments(t *testing.T) {
	origins.Each(t, func(t *testing.T, b bucket.Bucket) {
		o := origins.New(t, b)
		web, lost := content.VolumeID{1}, content.VolumeID{2}
		own := o.Segments(web, content.Position{}, 100, 200)
		run1, tails := o.Tails(web, own[1].Through, 10, 20)
		o.Tails(web, run1.Through, 30) // which no record names yet
		o.Segments(lost, content.Position{}, 1000)
		o.Volume("web", web, own[0], own[1], run1)
		o.Snapshot("web", 1, web, own...)
		r := run(t, o)
		const head = catalog.TailHeader
		want := []Volume{
			{ID: web.String(), Name: "volume:web", Amount: garbage.Amount{Objects: 5, Bytes: 360 + 3*head}, Named: garbage.Amount{Objects: 4, Bytes: 330 + 2*head}},
			{ID: lost.String(), Amount: garbage.Amount{Objects: 1, Bytes: 1000}},
		}
		if !slices.Equal(r.Volumes, want) || r.Segments != (garbage.Amount{Objects: 6, Bytes: 1360 + 3*head}) || len(tails) != 2 {
			t.Errorf("%+v, want %+v", r.Volumes, want)
		}
		if n := name(t, r, "volume:web"); n.Segments != 330+2*head || n.Scope != "farm/a" || n.Stored != 0 {
			t.Errorf("%+v", n)
		}
		if n := name(t, r, "snapshot:web@1"); n.Segments != 300 {
			t.Errorf("%+v", n)
		}
	})
}

// TestBrokenIsTold: what can't be read is told, and ends nothing; a store that is away does.
func TestBrokenIsTold(t *testing.T) {
	away := false
	o := origins.New(t, mem.New(t, mem.Config{MayReadDeleted: true, Fault: func(c mem.Call) (f mem.Fault) {
		if away && c.Op == mem.Get {
			f.Err = content.ErrUnavailable
		}
		return f
	}}))
	one := o.Import("one", origins.Chunks(1, 100))
	o.Import("two", origins.Chunks(2, 100))
	o.Import("three", origins.Chunks(3, 100))
	o.Damage(one.Manifest.Pack.Key(), func([]byte) []byte { return nil })
	o.Damage("records/image/two", func(b []byte) []byte { return b[:len(b)-9] })
	r := run(t, o)
	var names []string
	for _, b := range r.Broken {
		names = append(names, b.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"image:one", "image:two"}) || name(t, r, "image:three").Own == 0 {
		t.Errorf("%+v", r)
	}
	away = true
	if _, err := Run(t.Context(), Config{Source: o.Source()}); !errors.Is(err, content.ErrUnavailable) {
		t.Error(err)
	}
}

// TestMemory: it has an end, which is told.
func TestMemory(t *testing.T) {
	o := origins.New(t, mem.New(t, mem.Config{}))
	for i := range 10 {
		o.Import(string(rune('a'+i)), origins.Chunks(i, 3))
	}
	for _, memory := range []int64{0, 5 * packCosts, 10*packCosts + 5*nameCosts} {
		if _, err := newCount(Config{Source: o.Source()}, memory).run(t.Context()); !errors.Is(err, content.ErrNoSpace) {
			t.Errorf("%d: %v", memory, err)
		}
	}
	if _, err := newCount(Config{Source: o.Source()}, 10*(packCosts+nameCosts+rootCosts+refCosts)).run(t.Context()); err != nil {
		t.Error(err)
	}
}
