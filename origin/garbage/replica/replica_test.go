package replica

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/garbage/check"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/origins"
	"github.com/grangemesh/grange/simulations/soak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an origin with some names.
type world struct {
	*origins.Origin
	one, other pack.Head
	web        []content.SegmentRef
	tails      []string
}

func newWorld(t *testing.T, b bucket.Bucket) *world {
	w := &world{Origin: origins.New(t, b)}
	w.one = w.Import("one", origins.Chunks(1, 300))
	w.Name(content.KindTag, "same", w.one)
	w.other = w.Import("other", origins.Chunks(2, 300))
	w.Import("gone", origins.Chunks(3, 10))
	w.Remove(content.KindImage, "gone")
	w.Lease(w.other)
	web, db := content.VolumeID{1}, content.VolumeID{2}
	w.web = w.Segments(web, content.Position{}, 1000, memoryMax+1, 50)
	w.Volume("web", web, w.web...)
	w.Snapshot("web", 1, web, w.web[:2]...)
	run, tails := w.Tails(db, content.Position{}, 10, 20_000, 30)
	w.Volume("db", db, run)
	w.tails = tails
	w.Add("garbage/mesh/2026112022-000102030405060708090a0b0c0d0e0f.batch", []byte("of this origin alone"))
	return w
}

func (w *world) copy(t *testing.T, to bucket.Bucket) Report {
	t.Helper()
	r, err := Run(t.Context(), w.Source(), to, Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// whole fails unless all names at a copy are whole, and returns them.
func (w *world) whole(t *testing.T, at bucket.Bucket) (names []string) {
	t.Helper()
	source := w.Source()
	source.Bucket = at
	r, err := check.Run(t.Context(), check.Config{Source: source, ReadData: 1})
	if err != nil || len(r.Hurt) > 0 {
		t.Fatalf("at the copy: %+v %v", r.Hurt, err)
	}
	for rec, err := range source.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, rec.Label())
	}
	return names
}

func keys(t *testing.T, of bucket.Bucket) (out []string) {
	t.Helper()
	for info, err := range of.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.Key)
	}
	return out
}

func all() []string {
	return []string{"image:one", "image:other", "image:same", "snapshot:web@1", "volume:db", "volume:web"}
}

// TestCopy: all is copied but what is of the origin alone, and once.
func TestCopy(t *testing.T) {
	origins.Each(t, func(t *testing.T, to bucket.Bucket) {
		w := newWorld(t, mem.New(t, mem.Config{}))
		r := w.copy(t, to)
		if names := w.whole(t, to); !slices.Equal(names, all()) {
			t.Fatalf("%v", names)
		}
		want := slices.DeleteFunc(w.Keys(""), func(key string) bool {
			return strings.HasPrefix(key, "garbage/") || strings.HasPrefix(key, "records/lease/")
		})
		if got := keys(t, to); !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
		if r.Sent.Objects == 0 || r.Sent != r.Looked || r.Present.Objects != 0 || r.RecordsSent != 7 || r.Failed != 0 {
			t.Fatalf("%+v", r)
		}
		again := w.copy(t, to)
		if again.Sent.Objects != 0 || again.Present != r.Sent || again.RecordsSent != 0 || again.Records != 7 {
			t.Fatalf("%+v", again)
		}
		w.Import("one", origins.Chunks(5, 20))
		w.Remove(content.KindTag, "same")
		if r := w.copy(t, to); r.Sent.Objects == 0 || r.Sent.Bytes > 200_000 || r.RecordsSent != 2 || !slices.Equal(w.whole(t, to), slices.DeleteFunc(all(), func(n string) bool { return n == "image:same" })) {
			t.Fatalf("%+v", r)
		}
	})
}

// TestACopyOfALaidOutImage has its list, and its packs.
func TestACopyOfALaidOutImage(t *testing.T) {
	w, to := newWorld(t, mem.New(t, mem.Config{})), mem.New(t, mem.Config{})
	reader := pack.NewReader(w)
	base, err := build.ReadBase(t.Context(), reader, w.one)
	if err != nil {
		t.Fatal(err)
	}
	now, _, err := build.Relayout(t.Context(), build.Config{Bucket: w, Signer: w.Signer}, base, reader.ReadNode, func(yield func(build.Change, error) bool) {
		for _, i := range []int{200, 3, 17} {
			if !yield(build.Change{Index: uint64(i), Raw: origins.Chunk(1, i)}, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	list := &catalog.Boot{Root: base.Manifest.Root, Runs: 1, Stages: []catalog.BootStage{{Share: 1, Chunks: []uint64{200}}, {Share: 1, Chunks: []uint64{3, 17}}}}
	b, err := catalog.Image{Head: now.Head, Boot: list}.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	w.Commit(catalog.Change{Kind: content.KindImage, Name: "one", Body: b})
	w.copy(t, to)
	if names := w.whole(t, to); !slices.Equal(names, all()) {
		t.Errorf("%v", names)
	}
	c, err := catalog.New(catalog.Config{Bucket: to, Verifier: w.Verifier})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Get(t.Context(), content.KindImage, "one")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := catalog.DecodeImage(content.NewCodec(), r.Body); err != nil || !reflect.DeepEqual(body.Boot, list) || body.Head != now.Head {
		t.Errorf("the copy has %+v, %v", body, err)
	}
}

// TestNewerStays: what the copy knows better stays, and is told.
func TestNewerStays(t *testing.T) {
	w, to := newWorld(t, mem.New(t, mem.Config{})), mem.New(t, mem.Config{})
	w.copy(t, to)
	at := *w.Origin
	at.Bucket = to
	at.Import("one", origins.Chunks(7, 10))
	before, _, err := bucket.ReadAll(t.Context(), to, "records/image/one", content.RecordSizeMax)
	if err != nil {
		t.Fatal(err)
	}
	if r := w.copy(t, to); !slices.Equal(r.Newer, []string{"image:one"}) || r.Failed != 0 || r.RecordsSent != 0 {
		t.Fatalf("%+v", r)
	}
	w.Import("one", origins.Chunks(8, 10)) // of the same version
	if r := w.copy(t, to); r.Failed != 1 || r.Failures[0].Name != "image:one" {
		t.Fatalf("%+v", r)
	}
	if now, _, err := bucket.ReadAll(t.Context(), to, "records/image/one", content.RecordSizeMax); err != nil || !bytes.Equal(now, before) {
		t.Fatal("it was replaced", err)
	}
	at.Damage("records/image/one", func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	if r := w.copy(t, to); r.RecordsSent != 1 || r.Failed != 0 {
		t.Fatalf("what nobody believes stays: %+v", r)
	}
	w.whole(t, to)
}

// TestOthersAreRefused: nothing is written into what is another mesh's, or ignores conditions.
func TestOthersAreRefused(t *testing.T) {
	w, to := newWorld(t, mem.New(t, mem.Config{})), mem.New(t, mem.Config{})
	if err := catalog.ClaimMesh(t.Context(), to, trust.NewPrivateKey().Public()); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), w.Source(), to, Config{}); !errors.Is(err, content.ErrConflict) || len(to.Keys("")) != 1 || to.Count(mem.Put) != 1 {
		t.Fatalf("%v", err)
	}
	careless := mem.New(t, mem.Config{})
	if _, err := Run(t.Context(), w.Source(), unconditional{careless}, Config{}); !errors.Is(err, content.ErrReadOnly) || len(careless.Keys("")) != 0 {
		t.Fatalf("%v", err)
	}
}

type unconditional struct{ bucket.Bucket }

func (b unconditional) Put(ctx context.Context, key string, body bucket.Body, _ bucket.Condition) (bucket.Info, error) {
	return b.Bucket.Put(ctx, key, body, bucket.Condition{})
}

// TestDamageIsNotCopied: what is damaged is told, with the names that need it, and the rest is copied.
func TestDamageIsNotCopied(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(w *world)
		lost   []string
	}{
		"a flipped byte of a pack": {func(w *world) {
			w.Damage(w.Packs(w.one)[0].Key(), func(b []byte) []byte { b[1000] ^= 1; return b })
		}, []string{"image:one", "image:same"}},
		"a flipped byte of its end": {func(w *world) {
			w.Damage(w.Packs(w.one)[0].Key(), func(b []byte) []byte { b[len(b)-150] ^= 1; return b })
		}, []string{"image:one", "image:same"}},
		"a truncated pack": {func(w *world) {
			w.Damage(w.Packs(w.one)[0].Key(), func(b []byte) []byte { return b[:len(b)/2] })
		}, []string{"image:one", "image:same"}},
		"a pack that is another": {func(w *world) {
			other := w.Object(w.Packs(w.other)[0].Key())
			w.Damage(w.Packs(w.one)[0].Key(), func([]byte) []byte { return other[:len(other)-1] })
		}, []string{"image:one", "image:same"}},
		"a missing pack":                {func(w *world) { w.Damage(w.Packs(w.one)[0].Key(), gone) }, []string{"image:one", "image:same"}},
		"a record with a bad signature": {func(w *world) { w.Damage("records/image/other", flip(100)) }, []string{"image:other"}},
		"a manifest of another root": {func(w *world) {
			w.other.Manifest = w.one.Manifest
			w.Name(content.KindImage, "other", w.other)
		}, []string{"image:other"}},
		"a missing segment":               {func(w *world) { w.Damage(w.web[1].Key(), gone) }, []string{"snapshot:web@1", "volume:web"}},
		"a flipped byte of a segment":     {func(w *world) { w.Damage(w.web[2].Key(), flip(9)) }, []string{"volume:web"}},
		"a missing tail":                  {func(w *world) { w.Damage(w.tails[0], gone) }, []string{"volume:db"}},
		"a flipped byte of a large tail":  {func(w *world) { w.Damage(w.tails[1], flip(9000)) }, []string{"volume:db"}},
		"a flipped byte of a tail's head": {func(w *world) { w.Damage(w.tails[1], flip(9)) }, []string{"volume:db"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, mem.New(t, mem.Config{MayReadDeleted: true}))
			c.damage(w)
			to := mem.New(t, mem.Config{})
			for range 2 { // the second run has it no easier
				r := w.copy(t, to)
				var lost []string
				for _, f := range r.Failures {
					if f.Name != "" {
						lost = append(lost, f.Name)
					}
				}
				if !slices.Equal(lost, c.lost) || r.Failed < int64(len(lost)) {
					t.Fatalf("lost %v, want %v: %+v", lost, c.lost, r.Failures)
				}
				want := slices.DeleteFunc(all(), func(n string) bool { return slices.Contains(c.lost, n) })
				if names := w.whole(t, to); !slices.Equal(names, want) {
					t.Fatalf("%v, want %v", names, want)
				}
			}
		})
	}
}

func gone([]byte) []byte { return nil }

func flip(at int) func([]byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }

// TestAnyEnd: a copy that ends at any request, of which the work is done or not, or loses any reply, leaves names that are
// whole and no others; and the next one does the rest.
func TestAnyEnd(t *testing.T) {
	w := newWorld(t, mem.New(t, mem.Config{}))
	for name, fault := range map[string]func(at, n int64) mem.Fault{
		"a request that is lost":    func(at, n int64) mem.Fault { return failing(at == n, bucket.ErrUnknown, false) },
		"a reply that is lost":      func(at, n int64) mem.Fault { return failing(at == n, bucket.ErrUnknown, true) },
		"a store that goes away":    func(at, n int64) mem.Fault { return failing(at >= n, content.ErrUnavailable, false) },
		"one whose replies go away": func(at, n int64) mem.Fault { return failing(at >= n, content.ErrUnavailable, true) },
	} {
		t.Run(name, func(t *testing.T) {
			for n, over := int64(1), false; !over; n += soak.Of[int64](5, 1) {
				var calls atomic.Int64
				back := false
				to := mem.New(t, mem.Config{Fault: func(mem.Call) (f mem.Fault) {
					if at := calls.Add(1); !back {
						f = fault(at, n)
					}
					return f
				}})
				_, err := Run(t.Context(), w.Source(), to, Config{Dir: t.TempDir()})
				if err != nil && !errors.Is(err, content.ErrUnavailable) {
					t.Fatal(err)
				}
				over, back = calls.Load() < n, true
				names := w.whole(t, to)
				w.copy(t, to)
				if now := w.whole(t, to); !slices.Equal(now, all()) || err == nil && !slices.Equal(names, all()) {
					t.Fatalf("request %d: %v, then %v, %v", n, names, now, err)
				}
			}
		})
	}
}

func failing(now bool, err error, applied bool) (f mem.Fault) {
	if now {
		f = mem.Fault{Err: err, Applied: applied}
	}
	return f
}

// TestEnded: so does one that is told to end.
func TestEnded(t *testing.T) {
	w := newWorld(t, mem.New(t, mem.Config{}))
	for n := 1; ; n += 2 {
		to, told := mem.New(t, mem.Config{}), 0
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Run(ctx, w.Source(), to, Config{Dir: t.TempDir(), Progress: func(Report) {
			if told++; told == n {
				cancel()
			}
		}})
		cancel()
		w.whole(t, to)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		w.copy(t, to)
		if names := w.whole(t, to); !slices.Equal(names, all()) {
			t.Fatalf("step %d: %v", n, names)
		}
	}
}

// TestCommittedMeanwhile: a record that comes while the copy is made is copied with all that it names.
func TestCommittedMeanwhile(t *testing.T) {
	var w *world
	var once atomic.Bool
	from := mem.New(t, mem.Config{Wait: func(_ context.Context, c mem.Call) error {
		if w != nil && c.Op == mem.List && c.Key == string(content.KeyRecords) && once.CompareAndSwap(false, true) {
			w.Import("later", origins.Chunks(9, 200))
			id := content.VolumeID{5}
			run, _ := w.Tails(id, content.Position{}, 10, 20)
			w.Volume("late", id, append([]content.SegmentRef{run}, w.Segments(id, run.Through, 30)...)...)
		}
		return nil
	}})
	made := newWorld(t, from)
	w = made
	to := mem.New(t, mem.Config{})
	r := w.copy(t, to)
	if names := w.whole(t, to); !slices.Contains(names, "image:later") || !slices.Contains(names, "volume:late") || r.Failed > 0 {
		t.Fatalf("%v: %+v", names, r)
	}
}

// order notes what is put.
type order struct {
	bucket.Bucket
	mu  *sync.Mutex // guards put
	put *[]string
}

func (b order) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	info, err := b.Bucket.Put(ctx, key, body, cond)
	if err == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		*b.put = append(*b.put, key)
	}
	return info, err
}

// TestStubsAreCopied where the copy has not the pack that was rewritten, behind the one that took over.
func TestStubsAreCopied(t *testing.T) {
	w, to := newWorld(t, origins.Directory(t)), origins.Directory(t)
	id := w.Packs(w.one)[0]
	taker := w.Rewrite(id)
	var put []string
	r := w.copy(t, order{to, new(sync.Mutex), &put})
	put = slices.DeleteFunc(put, func(key string) bool { return !strings.HasPrefix(key, string(content.KeyPacks)) })
	if first, last := slices.Index(put, taker.Key()), slices.Index(put, id.Key()); first < 0 || last < first || slices.Contains(put[last+1:], id.Key()) || r.Failed > 0 {
		t.Fatalf("%v, want %s before %s: %+v", put, taker, id, r)
	}
	w.whole(t, to)
	w.Damage(taker.Key(), gone)
	if r := w.copy(t, to); r.Sent.Objects > 0 {
		t.Fatalf("%+v", r)
	}
	w.whole(t, to)
}

// TestDamageAtTheCopy: what a new record needs of segments that were there is read, and sent again.
func TestDamageAtTheCopy(t *testing.T) {
	w, to := newWorld(t, origins.Directory(t)), origins.Directory(t)
	w.copy(t, to)
	at := *w.Origin
	at.Bucket = to
	at.Damage(w.web[0].Key(), flip(3))
	at.Damage(w.tails[1], flip(3000))
	w.Volume("web", content.VolumeID{1}, w.web[:1]...)
	run, _ := w.Tails(content.VolumeID{2}, content.Position{Number: 3, Seq: 30}, 7)
	was := w.joined(t)
	w.Volume("db", content.VolumeID{2}, was, run)
	if r := w.copy(t, to); r.Failed > 0 || r.RecordsSent != 2 {
		t.Fatalf("%+v", r)
	}
	at.Remove(content.KindSnapshot, "web@1") // of which nothing was read
	w.whole(t, to)
}

// joined is what the record of volume:db names first.
func (w *world) joined(t *testing.T) content.SegmentRef {
	t.Helper()
	var chain []content.SegmentRef
	for _, key := range w.tails {
		ref, err := catalog.DecodeTail(w.Object(key)[:catalog.TailHeader])
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, ref)
	}
	return catalog.JoinTails(chain)
}

// TestGarbageAtTheCopy: what a copied record needs is taken out of the tombstones there; where it is condemned, that is
// told.
func TestGarbageAtTheCopy(t *testing.T) {
	for _, condemned := range []bool{false, true} {
		w, to := newWorld(t, mem.New(t, mem.Config{})), mem.New(t, mem.Config{})
		w.Remove(content.KindTag, "same")
		w.copy(t, to)
		dead := w.Packs(w.one)[0].Key()
		batch, err := content.NewCodec().Marshal(struct {
			Magic string `cbor:"magic"`
			garbage.Batch
		}{"grange-garbage/1", garbage.Batch{Since: time.Now().UnixMilli(), Epoch: 1, Condemned: condemned, Delete: []string{dead}, Repack: []string{}}})
		if err != nil {
			t.Fatal(err)
		}
		const key = "garbage/mesh/2026112022-000102030405060708090a0b0c0d0e0f.batch"
		if _, err := to.Put(t.Context(), key, bucket.Bytes(batch), bucket.IfAbsent()); err != nil {
			t.Fatal(err)
		}
		w.Name(content.KindTag, "again", w.one)
		r := w.copy(t, to)
		now, _, err := bucket.ReadAll(t.Context(), to, key, 1<<20)
		if err != nil || bytes.Contains(now, []byte(dead)) != condemned || condemned != (r.Failed == 1) || r.RecordsSent != 1 {
			t.Fatalf("condemned %t: %+v %v", condemned, r, err)
		}
	}
}

// TestTheCopysNamesStayWhole while a pack of theirs was written anew at the origin, with less than they need: until their
// records are copied, and where they never are.
func TestTheCopysNamesStayWhole(t *testing.T) {
	w, to := newWorld(t, mem.New(t, mem.Config{})), mem.New(t, mem.Config{})
	w.copy(t, to)
	w.Remove(content.KindTag, "same")
	w.Remove(content.KindImage, "one")
	id := w.Packs(w.one)[0]
	taker := pack.NewWriter(id[:len(id)-4]+"beef", nil)
	taker.Add(pack.RoleChunk, content.Sum(origins.Chunk(1, 0)), len(origins.Chunk(1, 0)), pack.CodecRaw, origins.Chunk(1, 0))
	s, err := taker.Seal(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.Add(s.ID.Key(), s.Bytes)
	w.Damage(id.Key(), func([]byte) []byte { return pack.NewWriter(id, nil).SealStub(s.ID).Bytes })
	records := w.Source()
	records.Bucket = onlyPacks{w.Origin.Bucket}
	if _, err := Run(t.Context(), records, to, Config{Dir: t.TempDir()}); !errors.Is(err, content.ErrUnavailable) {
		t.Fatal(err)
	}
	if names := w.whole(t, to); !slices.Equal(names, all()) {
		t.Fatalf("%v", names)
	}
	w.copy(t, to)
	w.whole(t, to)
}

// onlyPacks is an origin that goes away before records are listed.
type onlyPacks struct{ bucket.Bucket }

func (b onlyPacks) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	if strings.HasPrefix(prefix, string(content.KeyRecords)) {
		return func(yield func(bucket.Info, error) bool) { yield(bucket.Info{}, content.ErrUnavailable) }
	}
	return b.Bucket.List(ctx, prefix, after)
}
