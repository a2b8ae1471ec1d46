package repack

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/pack/verify"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const chunk = content.ChunkSizeMin

// world is an origin, with who may write there.
type world struct {
	*mem.Bucket
	signer   trust.Signer
	verifier *trust.Verifier

	mu    sync.Mutex // guards what follows
	slept time.Duration
	calls int
	fault func(call int, c mem.Call) mem.Fault // counted from 0; nil for none
}

type tb interface {
	mem.Reporter
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Context() context.Context
}

func newWorld(t tb) *world {
	t.Helper()
	root, key := trust.NewPrivateKey(), trust.NewPrivateKey()
	chain, err := trust.Signer{Key: root}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "a"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{signer: trust.Signer{Key: key, Chain: chain}, verifier: trust.NewVerifier(root.Public())}
	w.Bucket = mem.New(t, mem.Config{MayReadDeleted: true, Now: w.now, Fault: func(c mem.Call) mem.Fault {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.calls++
		if w.fault == nil {
			return mem.Fault{}
		}
		return w.fault(w.calls-1, c)
	}})
	return w
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.slept)
}

func (w *world) sleep(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slept += d
}

// fail sets which calls fail from here on, and returns how many there were since the last time.
func (w *world) fail(fault func(call int, c mem.Call) mem.Fault) (calls int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls, w.calls, w.fault = w.calls, 0, fault
	return calls
}

// disk is what a root has: chunks by their seeds, 0 for a hole.
type disk []uint64

func chunkOf(seed uint64) []byte {
	if seed == 0 {
		return make([]byte, chunk)
	}
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	b := make([]byte, chunk)
	_, _ = rand.NewChaCha8(key).Read(b[:chunk/2])
	b[chunk-1] = 1
	return b
}

// store writes a disk: what base has of it is kept.
func (w *world) store(t tb, d disk, base build.Base, was disk) build.Base {
	t.Helper()
	cfg := build.Config{Bucket: w, Scope: content.Mesh(), Size: int64(len(d)) * chunk, ChunkSize: chunk, PackSize: 64 << 10, Signer: w.signer}
	reader := pack.NewReader(w)
	changes := func(yield func(build.Change, error) bool) {
		for i, seed := range d {
			if i < len(was) && was[i] == seed || i >= len(was) && seed == 0 {
				continue
			}
			if !yield(build.Change{Index: uint64(i), Raw: chunkOf(seed)}, nil) {
				return
			}
		}
	}
	got, _, err := build.Fold(t.Context(), cfg, base, reader.ReadNode, changes)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// check reads all of some roots as a reader does, which knows nothing yet, or what it has learnt.
func check(t tb, r *pack.Reader, heads []pack.Head) {
	t.Helper()
	for i, h := range heads {
		if report, err := (verify.Config{Reader: r}).Image(t.Context(), h); err != nil || report.Err() != nil {
			t.Fatalf("root %d: %v, %v", i, report.Err(), err)
		}
	}
}

// group is all packs that are in the bucket, with the stubs that lead to them.
func (w *world) group(t tb) Group {
	t.Helper()
	g := Group{Stubs: map[pack.ID]pack.ID{}}
	r := pack.NewReader(w)
	for _, key := range w.Keys("packs/") {
		id, err := pack.ParseKey(key)
		if err != nil {
			t.Fatal(err)
		}
		d, err := r.Taker(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if d.Pack == id {
			g.Packs = append(g.Packs, id)
		} else {
			g.Stubs[id] = d.Pack
		}
	}
	return g
}

// repack writes all packs anew.
func (w *world) repack(ctx context.Context, g Group, heads []pack.Head) (Written, error) {
	alive, left, err := Live(ctx, pack.NewReader(w), heads, g)
	if err != nil {
		return Written{}, err
	}
	out, err := w.write(ctx, Config{Signer: w.signer, PackSize: 256 << 10}, g, alive)
	out.Left = append(left, out.Left...)
	return out, err
}

// write is Write there, of all that is worth anything, at any time.
func (w *world) write(ctx context.Context, cfg Config, g Group, alive Alive) (Written, error) {
	cfg.Bucket, cfg.Now, cfg.Log = w, time.Now, slog.New(slog.DiscardHandler)
	if cfg.May == nil {
		cfg.May = func(context.Context) error { return nil }
	}
	if cfg.Least == nil {
		cfg.Least = func(pack.ID, int64) int64 { return 0 }
	}
	return Write(ctx, cfg, g, alive)
}

func (w *world) size() (n int64) {
	for info, err := range w.List(context.Background(), "packs/", "") {
		if err == nil {
			n += info.Size
		}
	}
	return n
}

// fork stores a disk and what it becomes, and returns the last alone: much of the packs is dead.
func (w *world) fork(t tb) []pack.Head {
	t.Helper()
	first := make(disk, 1500)
	for i := range 100 {
		first[i*15] = uint64(i) + 1
	}
	base := w.store(t, first, build.Base{}, nil)
	second := slices.Clone(first)
	for i := range 70 {
		second[i*15] = uint64(i) + 1000
	}
	return []pack.Head{w.store(t, second, base, first).Head}
}

func TestWhatLivesIsWrittenAnew(t *testing.T) {
	w := newWorld(t)
	heads := w.fork(t)
	old, before := w.group(t), w.size()
	out, err := w.repack(t.Context(), old, heads)
	if err != nil {
		t.Fatal(err)
	}
	freed := before - w.size()
	if out.Freed != freed || freed <= 0 || len(out.Moved)+len(out.Left) != len(old.Packs) || out.Packs == 0 {
		t.Fatalf("%+v, and %d of %d bytes are free", out, freed, before)
	}
	for _, l := range out.Left {
		if !errors.Is(l.Err, content.ErrInvalid) {
			t.Fatalf("%s is left: %v", l.Pack, l.Err)
		}
		if err := w.Delete(t.Context(), l.Pack.Key()); err != nil { // nothing lives there
			t.Fatal(err)
		}
	}
	check(t, pack.NewReader(w), heads)
	if after := w.size(); after > before*2/3 {
		t.Fatalf("%d of %d bytes are left", after, before)
	}
	for id, to := range out.Moved {
		d, err := pack.NewReader(w).ReadDirectory(t.Context(), to)
		if err != nil || d.Moved != "" {
			t.Fatalf("%s moved to %s: %v", id, to, err)
		}
		if _, err := w.verifier.OpenPack(d.Signature, trust.Pack{ID: string(to), Scope: to.Scope(), Directory: content.Sum(d.Encode())}, time.Now(), time.Now()); err != nil {
			t.Fatalf("nobody vouches for %s: %v", to, err)
		}
		for i, e := range d.Entries {
			if e.Role == pack.RoleNode && d.Entries[i+1].Role != pack.RolePage {
				t.Fatalf("behind node %d there is no page", i)
			}
		}
	}
	// Importers know the fresh packs, by an index object.
	if objects := w.Keys("index/"); len(objects) != 1 {
		t.Fatalf("index objects: %v", objects)
	}
	x, err := index.Load(t.Context(), index.Config{Bucket: w, Scopes: []content.Scope{content.Mesh()}, Verifier: w.verifier})
	if at, ok := x.Locate(t.Context(), content.Sum(chunkOf(1000))); err != nil || !ok || old.of(at.Pack) != at.Pack {
		t.Fatalf("%v %v %v", at, ok, err)
	}
	again, err := w.repack(t.Context(), Group{Packs: old.Packs}, heads)
	if err != nil || again.Packs != 0 || again.Freed != 0 {
		t.Fatalf("%+v, %v", again, err)
	}
}

// Packs that took over are written anew too, again and again: stubs lead to the last, and the ones between may go.
func TestChainsStayShort(t *testing.T) {
	w := newWorld(t)
	heads := w.fork(t)
	reader := pack.NewReader(w) // remembers where they were each time
	for range 12 {
		if _, err := w.repack(t.Context(), w.group(t), heads); err != nil {
			t.Fatal(err)
		}
		check(t, reader, heads)
		check(t, pack.NewReader(w), heads)
	}
	named := map[pack.ID]bool{}
	m, err := pack.NewReader(w).ReadManifest(t.Context(), heads[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Packs {
		d, err := pack.NewReader(w).ReadDirectory(t.Context(), p.ID)
		if err != nil {
			t.Fatal(err)
		}
		named[p.ID], named[d.Moved] = true, true
	}
	for _, key := range w.Keys("packs/") {
		if id, _ := pack.ParseKey(key); !named[id] {
			if err := w.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	check(t, pack.NewReader(w), heads)
	check(t, reader, heads)
}

// Whichever call fails, applied or not, or is the last, all is readable, and what is called again ends it.
func TestKilledAnywhere(t *testing.T) {
	for name, s := range map[string]struct {
		fault mem.Fault
		kill  bool
	}{
		"not applied":   {mem.Fault{Err: content.ErrUnavailable}, false},
		"lost":          {mem.Fault{Err: bucket.ErrUnknown, Applied: true}, false},
		"killed before": {mem.Fault{Err: context.Canceled}, true},
		"killed behind": {mem.Fault{Err: context.Canceled, Applied: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 1 // how many there are when all goes well, once that is known
			for at := -1; at < calls; at++ {
				w := newWorld(t)
				heads := w.fork(t)
				if _, err := w.repack(t.Context(), w.group(t), heads); err != nil { // so that there are stubs
					t.Fatal(err)
				}
				g := w.group(t)
				ctx, cancel := context.WithCancel(t.Context())
				w.fail(func(call int, _ mem.Call) mem.Fault {
					if call != at {
						return mem.Fault{}
					}
					if s.kill {
						cancel() // and each later one fails with it
					}
					return s.fault
				})
				_, err := w.repack(ctx, g, heads)
				cancel()
				if n := w.fail(nil); at < 0 {
					calls = n
				}
				if failed := err != nil; at < 0 && failed || at >= 0 && s.kill && !failed && at < calls-1 { // the last is of an index object
					t.Fatalf("call %d of %d: %v", at, calls, err)
				}
				check(t, pack.NewReader(w), heads)
				if _, err := w.repack(t.Context(), w.group(t), heads); err != nil {
					t.Fatal(err)
				}
				check(t, pack.NewReader(w), heads)
			}
		})
	}
}

// A pack that holds damage stays, and so does what a map that can't be read may name.
func TestDamageStaysWhereItIs(t *testing.T) {
	w := newWorld(t)
	heads := w.fork(t)
	g := w.group(t)
	alive, _, err := Live(t.Context(), pack.NewReader(w), heads, g)
	if err != nil {
		t.Fatal(err)
	}
	var bad pack.Entry // a chunk that lives
	for _, id := range g.Packs {
		d, err := pack.NewReader(w).ReadDirectory(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range d.Entries {
			if alive[id][e.CID] && e.Role == pack.RoleChunk {
				bad = e
			}
		}
	}
	w.Corrupt(bad.Pack.Key(), func(b []byte) { b[bad.Offset+bad.Length/2] ^= 1 })
	out, err := w.repack(t.Context(), g, heads)
	if _, moved := out.Moved[bad.Pack]; err != nil || moved || len(out.Moved) == 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	if i := slices.IndexFunc(out.Left, func(l Left) bool { return l.Pack == bad.Pack }); i < 0 || !errors.Is(out.Left[i].Err, content.ErrCorrupt) {
		t.Fatalf("%+v", out.Left)
	}
	w = newWorld(t)
	heads = w.fork(t)
	w.Corrupt(heads[0].Node.Pack.Key(), func(b []byte) { b[heads[0].Node.Offset+heads[0].Node.Length/2] ^= 1 })
	out, err = w.repack(t.Context(), w.group(t), heads)
	m, merr := pack.NewReader(w).ReadManifest(t.Context(), heads[0])
	if err = errors.Join(err, merr); err != nil || len(out.Moved) > 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	for _, p := range m.Packs {
		if !slices.ContainsFunc(out.Left, func(l Left) bool { return l.Pack == p.ID && errors.Is(l.Err, content.ErrCorrupt) }) {
			t.Fatalf("%s is not left: %+v", p.ID, out.Left)
		}
	}
}

// Whoever finds that another has taken over gives no name to a stub.
func TestMayIsAskedBeforeEachStub(t *testing.T) {
	w := newWorld(t)
	heads := w.fork(t)
	g := w.group(t)
	alive, _, err := Live(t.Context(), pack.NewReader(w), heads, g)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	out, err := w.write(t.Context(), Config{May: func(context.Context) error {
		if asked++; asked == 2 {
			return content.ErrFenced
		}
		return nil
	}}, g, alive)
	if !errors.Is(err, content.ErrFenced) || len(out.Moved) != 1 || len(w.group(t).Stubs) != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	check(t, pack.NewReader(w), heads)
}

// One that sleeps before it leaves a stub, until another has collected its fresh pack, puts the frames anew: a stub names
// what is there. Where it didn't sleep it asks nobody.
func TestAFreshPackThatWasCollectedIsPutAnew(t *testing.T) {
	for name, c := range map[string]struct {
		sleep       time.Duration
		at          int // before which stub
		fault       mem.Fault
		asked, lost bool
	}{
		"no pause":   {0, 0, mem.Fault{}, false, false},
		"a pause":    {2 * time.Minute, 1, mem.Fault{}, true, false},
		"lost":       {25 * time.Hour, 1, mem.Fault{}, true, true},
		"lost later": {25 * time.Hour, 2, mem.Fault{}, true, true},
		"no answer":  {0, 1, mem.Fault{Err: bucket.ErrUnknown, Applied: true}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			heads := w.fork(t)
			some := w.group(t)
			some.Packs = some.Packs[:len(some.Packs)/2]
			if _, err := w.repack(t.Context(), some, heads); err != nil { // so that there are stubs
				t.Fatal(err)
			}
			g, was := w.group(t), w.Keys("packs/")
			alive, _, err := Live(t.Context(), pack.NewReader(w), heads, g)
			if err != nil {
				t.Fatal(err)
			}
			stubs, asked := 0, false
			out, err := w.write(t.Context(), Config{
				Signer: w.signer, PackSize: 1 << 20,
				May: func(context.Context) error {
					if stubs++; stubs != c.at {
						return nil
					}
					w.sleep(c.sleep)
					if c.fault.Err != nil {
						w.fail(func(call int, _ mem.Call) mem.Fault {
							if call > 0 {
								return mem.Fault{}
							}
							return c.fault
						})
					}
					for _, key := range w.Keys("packs/") {
						if c.lost && !slices.Contains(was, key) {
							return w.Delete(t.Context(), key)
						}
					}
					return nil
				},
				Secure: func(_ context.Context, keys []string) (lost []string, err error) {
					asked = true
					return slices.DeleteFunc(keys, func(key string) bool { return slices.Contains(w.Keys("packs/"), key) }), nil
				},
			}, g, alive)
			if err != nil || asked != c.asked || len(out.Moved) == 0 || c.lost != (out.Packs == 2) {
				t.Fatalf("%+v, %v; asked %t", out, err, asked)
			}
			check(t, pack.NewReader(w), heads)
			w.collect(t, heads)
			check(t, pack.NewReader(w), heads)
		})
	}
}

func TestWhatHardlyPaysStays(t *testing.T) {
	w := newWorld(t)
	heads := w.fork(t)
	g := w.group(t)
	alive, _, err := Live(t.Context(), pack.NewReader(w), heads, g)
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.write(t.Context(), Config{Least: func(_ pack.ID, size int64) int64 { return size }}, g, alive)
	if err != nil || out.Packs > 0 || len(out.Left) != len(g.Packs) || slices.ContainsFunc(out.Left, func(l Left) bool { return !errors.Is(l.Err, content.ErrInvalid) }) {
		t.Fatalf("%+v, %v", out, err)
	}
}

// collect deletes the packs that no root needs, by manifests and stubs.
func (w *world) collect(t tb, heads []pack.Head) {
	t.Helper()
	r, named := pack.NewReader(w), map[pack.ID]bool{}
	for _, h := range heads {
		m, err := r.ReadManifest(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range m.Packs {
			for id := p.ID; id != "" && !named[id]; {
				named[id] = true
				d, err := r.ReadDirectory(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				id = d.Moved
			}
		}
	}
	for _, key := range w.Keys("packs/") {
		if id, _ := pack.ParseKey(key); !named[id] {
			if err := w.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRootsThatShare folds, forks and drops roots, writes packs anew and deletes what is dead, in any order: all that
// lives is read, by who has just come and by who has been there all the time.
func TestRootsThatShare(t *testing.T) {
	type root struct {
		build.Base
		disk
	}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		reader := pack.NewReader(w)
		var roots []root
		heads := func() (out []pack.Head) {
			for _, r := range roots {
				out = append(out, r.Head)
			}
			return out
		}
		seeds := rapid.SliceOfN(rapid.Uint64Range(0, 40), 1, 60)
		for range rapid.IntRange(3, 12).Draw(t, "steps") {
			switch what := rapid.IntRange(0, 4).Draw(t, "what"); {
			case what < 2 || len(roots) == 0:
				var from root
				if len(roots) > 0 && rapid.Bool().Draw(t, "fork") {
					from = rapid.SampledFrom(roots).Draw(t, "from")
				}
				d := make(disk, 1100+len(from.disk)/2)
				copy(d, from.disk)
				copy(d[rapid.SampledFrom([]int{0, 30, 1020}).Draw(t, "at"):], seeds.Draw(t, "chunks"))
				d = d[:max(len(from.disk), 1100)]
				roots = append(roots, root{w.store(t, d, from.Base, from.disk), d})
			case what == 2:
				i := rapid.IntRange(0, len(roots)-1).Draw(t, "drop")
				roots = slices.Delete(roots, i, i+1)
			case what == 3:
				g := w.group(t)
				some := rapid.SliceOfN(rapid.Bool(), len(g.Packs), len(g.Packs)).Draw(t, "packs")
				all := g.Packs
				g.Packs = nil
				for i, id := range all {
					if some[i] {
						g.Packs = append(g.Packs, id)
					}
				}
				if _, err := w.repack(t.Context(), g, heads()); err != nil {
					t.Fatal(err)
				}
			default:
				w.collect(t, heads())
			}
			check(t, pack.NewReader(w), heads())
			check(t, reader, heads())
		}
	})
}
