package garbage

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

const past = GraceDefault + time.Hour

// TestDeadGoesAndLivesStay: what no record names gets a tombstone, and goes when the grace is over; not before.
func TestDeadGoesAndLivesStay(t *testing.T) {
	w := newWorld(t)
	w.publish(t, "old", chunks(100, 1000))
	w.publish(t, "new", chunks(200, 5000))
	all := w.keys(t, string(content.KeyPacks))
	if r := w.run(t); r.Marked.Objects != 0 || r.Deleted.Objects != 0 || r.Live.Objects != 2 {
		t.Fatalf("nothing is dead: %+v", r)
	}
	w.remove(t, "old")
	if r := w.run(t); r.Marked.Objects != 1 || r.Deleted.Objects != 0 || r.Next.IsZero() {
		t.Fatalf("a pack is dead: %+v", r)
	}
	w.later(GraceDefault - time.Minute)
	if r := w.run(t); r.Marked.Objects != 0 || r.Deleted.Objects != 0 || r.Waiting.Objects != 1 {
		t.Fatalf("it waits: %+v", r)
	}
	w.same(t, all)
	w.later(2 * time.Minute)
	if r := w.run(t); r.Deleted.Objects != 1 {
		t.Fatalf("its grace is over: %+v", r)
	}
	w.check(t)
	if now := w.keys(t, string(content.KeyPacks)); len(now) != 1 {
		t.Fatalf("there are %v", now)
	}
	if left := w.keys(t, string(content.KeyGarbage)); len(left) != 0 {
		t.Fatalf("tombstones are left: %v", left)
	}
}

// TestDryRunWritesNothing, and says what a run would do.
func TestDryRunWritesNothing(t *testing.T) {
	w := newWorld(t)
	w.publish(t, "old", chunks(100, 1000))
	w.remove(t, "old")
	cfg := w.config()
	cfg.DryRun = true
	puts := w.Count(mem.Put) + w.Count(mem.Delete)
	r, err := Run(t.Context(), cfg)
	if err != nil || r.row("is marked").Objects != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if now := w.Count(mem.Put) + w.Count(mem.Delete); now != puts {
		t.Fatalf("%d writes", now-puts)
	}
}

// TestRevived: what is named again in its grace stays; also what a committer takes out while a run has seen it dead.
func TestRevived(t *testing.T) {
	w := newWorld(t)
	what := chunks(100, 1000)
	w.publish(t, "old", what)
	w.remove(t, "old")
	w.run(t)
	w.publish(t, "again", what) // finds it in the index, and takes it out
	if left := w.keys(t, string(content.KeyGarbage)); len(left) != 1 {
		t.Fatalf("batches: %v", left)
	}
	w.later(past)
	w.run(t)
	w.later(past)
	w.run(t)
	w.check(t)
}

// TestEmptiedBatchGoes: tombstones of which committers have taken all out.
func TestEmptiedBatchGoes(t *testing.T) {
	w := newWorld(t)
	what := chunks(100, 1000)
	w.publish(t, "old", what)
	w.remove(t, "old")
	w.run(t)
	w.publish(t, "again", what)
	w.remove(t, "again")
	w.publish(t, "once-more", what)
	w.run(t)
	if left := w.keys(t, string(content.KeyGarbage)); len(left) != 0 {
		t.Fatalf("tombstones are left: %v", left)
	}
	w.check(t)
}

// TestDeadWhileWrittenAnew: a pack that a run was about to write anew, or had, when it broke off, and that nobody names any
// more by the next: it is gone two runs later.
func TestDeadWhileWrittenAnew(t *testing.T) {
	w := newWorld(t)
	w.publish(t, "x", chunks(200, 1000))
	w.publish(t, "other", chunks(200, 5000))
	w.publish(t, "x", chunks(60, 1000))
	if r := w.run(t); r.Marked.Objects != 1 {
		t.Fatalf("a pack is to be written anew: %+v", r)
	}
	w.later(past)
	w.breaks(func(c mem.Call) mem.Fault {
		if c.Op == mem.Delete && strings.HasPrefix(c.Key, string(content.KeyGarbage)) {
			return mem.Fault{Err: content.ErrUnavailable}
		}
		return mem.Fault{}
	})
	if r, err := Run(t.Context(), w.config()); err == nil || r.Repacked.Objects != 1 {
		t.Fatalf("it breaks off: %+v, %v", r, err)
	}
	w.breaks(nil)
	w.remove(t, "x")
	for range 2 {
		w.later(past)
		w.run(t)
	}
	w.check(t)
	if now := w.keys(t, string(content.KeyPacks)); len(now) != 1 {
		t.Fatalf("there are %v", now)
	}
}

// TestCommitBesideARun: at each request of the run that deletes, an importer commits what finds the dead pack in the index.
// It keeps it, or is told that it is lost.
func TestCommitBesideARun(t *testing.T) {
	for at := 0; ; at++ {
		w := newWorld(t)
		what := chunks(50, 1000)
		w.publish(t, "old", what)
		w.publish(t, "other", chunks(3, 9000))
		w.remove(t, "old")
		w.run(t)
		w.later(past)
		head, m := w.pack(t, what, content.Mesh()) // all of it stands
		n, lost, done := 0, []string(nil), false
		w.breaks(func(c mem.Call) mem.Fault {
			if n++; n != at+1 {
				return mem.Fault{}
			}
			done = true
			w.fault = nil
			w.mu.Unlock()
			defer w.mu.Lock()
			w.put(t, content.KindImage, "again", "", head)
			var keys []string
			for _, p := range m.Packs {
				keys = append(keys, p.ID.Key())
			}
			var err error
			if lost, err = Secure(t.Context(), w, keys, nil); err != nil {
				t.Fatal(err)
			}
			return mem.Fault{}
		})
		w.run(t)
		w.breaks(nil)
		if !done {
			return
		}
		if len(lost) == 0 {
			w.wants["again"] = what
		} else { // it would be imported again
			w.remove(t, "again")
		}
		w.later(past)
		w.run(t)
		w.check(t)
	}
}

// TestAnyRequestFails: a run of which any request fails, with or without what it asked for done, deletes nothing that lives,
// and the next goes on.
func TestAnyRequestFails(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for at := 0; ; at++ {
			w := newWorld(t)
			w.publish(t, "old", chunks(100, 1000))
			w.publish(t, "new", chunks(200, 5000))
			w.remove(t, "old")
			w.run(t)
			w.later(past)
			n := 0
			w.breaks(func(c mem.Call) mem.Fault {
				if n++; n != at+1 {
					return mem.Fault{}
				}
				err := content.ErrUnavailable
				if c.Op == mem.Put && applied {
					err = bucket.ErrUnknown
				}
				return mem.Fault{Err: err, Applied: applied}
			})
			_, err := Run(t.Context(), w.config())
			reached := n > at
			w.breaks(nil)
			w.check(t)
			if r := w.run(t); err != nil && r.Deleted.Objects > 1 {
				t.Fatalf("request %d: %+v", at, r)
			}
			w.check(t)
			if now := w.keys(t, string(content.KeyPacks)); len(now) != 1 {
				t.Fatalf("request %d failed, applied %v: there are %v", at, applied, now)
			}
			if !reached {
				break
			}
		}
	}
}

// TestWhatIsNotKnownEndsIt: keys, kinds and versions of a later program.
func TestWhatIsNotKnownEndsIt(t *testing.T) {
	for name, object := range map[string]struct {
		key   string
		bytes string
	}{
		"space":          {"boot/x", "x"},
		"space at end":   {"zzz/x", "x"},
		"kind":           {"records/playlist/x", "x"},
		"pack":           {"packs/mesh/2026112022-000102030405060708090a0b0c0d0e0f.pack2", "x"},
		"index":          {"index/mesh/x", "x"},
		"journal":        {"journals/x", "x"},
		"batch":          {"garbage/x", "x"},
		"batch's format": {"garbage/mesh/2026112022-000102030405060708090a0b0c0d0e0f.batch", "\xa1\x65magic\x70grange-garbage/2"},
	} {
		t.Run(name, func(t *testing.T) {
			w := dead(t)
			if _, err := w.Put(t.Context(), object.key, bucket.Bytes([]byte(object.bytes)), bucket.IfAbsent()); err != nil {
				t.Fatal(err)
			}
			w.refuses(t, content.ErrUnknown, object.key)
		})
	}
}

// dead is a world in which something would be deleted.
func dead(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.publish(t, "old", chunks(100, 1000))
	w.publish(t, "new", chunks(200, 5000))
	w.remove(t, "old")
	w.run(t)
	w.later(past)
	return w
}

// refuses fails unless a run ends with an error that says so, and nothing went.
func (w *world) refuses(t *testing.T, want error, says string) {
	t.Helper()
	all := w.keys(t, "packs/mesh/2026112022-")
	_, err := Run(t.Context(), w.config())
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Fatalf("%v, want %v and %q", err, want, says)
	}
	if now := w.keys(t, "packs/mesh/2026112022-"); len(now) != len(all) {
		t.Fatalf("there are %v, before %v", now, all)
	}
}

// TestNewerBodyEndsIt: a record of a kind that is known, which says more than this version reads, may name packs.
func TestNewerBodyEndsIt(t *testing.T) {
	w := dead(t)
	head, _ := w.pack(t, chunks(3, 1), content.Mesh())
	codec := content.NewCodec()
	body, err := catalog.Image{Head: head}.Encode(codec)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := codec.Unmarshal(body, &fields); err != nil {
		t.Fatal(err)
	}
	fields["later"] = "a head of a later version"
	if body, err = codec.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if _, err := w.catalog(t).Commit(t.Context(), catalog.Change{Kind: content.KindImage, Name: "newer", Body: body}); err != nil {
		t.Fatal(err)
	}
	w.refuses(t, content.ErrUnknown, "newer")
}

// TestListsThatLie: a list that leaves out what is there, fails midway, or is of another time.
func TestListsThatLie(t *testing.T) {
	w := dead(t)
	n := 0
	w.breaks(func(c mem.Call) mem.Fault {
		if c.Op == mem.List && c.Key == string(content.KeyRecords) {
			n++
			return mem.Fault{Err: content.ErrUnavailable, Applied: true}
		}
		return mem.Fault{}
	})
	w.refuses(t, content.ErrUnavailable, "list records")
	if n == 0 {
		t.Fatal("no list failed")
	}
}

// TestListThatLeavesOut: a pack that a record names, or a record that was just written, and that is there, and that no list
// shows.
func TestListThatLeavesOut(t *testing.T) {
	w := dead(t)
	head := w.publish(t, "hidden", chunks(30, 7000))
	w.later(time.Hour)
	all := w.keys(t, string(content.KeyPacks))
	for _, key := range []string{head.Node.Pack.Key(), "records/collection/origin"} {
		cfg := w.config()
		cfg.Bucket = hiding{w, key}
		if _, err := Run(t.Context(), cfg); !errors.Is(err, bucket.ErrDoubt) {
			t.Fatal(key, err)
		}
		w.same(t, all)
	}
}

// hiding is a store whose lists leave out one key.
type hiding struct {
	*world
	key string
}

func (h hiding) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		for info, err := range h.world.List(ctx, prefix, after) {
			if info.Key != h.key && !yield(info, err) {
				return
			}
		}
	}
}

// TestClockThatGoesBack: at any request of a run that would delete something, the store's clock does.
func TestClockThatGoesBack(t *testing.T) {
	for at := 0; ; at++ {
		w := dead(t)
		n, back := 0, false
		w.breaks(func(mem.Call) mem.Fault {
			if n++; n == at+1 {
				w.clock, back = w.clock.Add(-time.Hour), true
			}
			return mem.Fault{}
		})
		_, err := Run(t.Context(), w.config())
		w.breaks(nil)
		if !back {
			return
		}
		if left := len(w.keys(t, string(content.KeyPacks))); err == nil && left == 2 || err != nil && !errors.Is(err, bucket.ErrDoubt) && at > 0 {
			t.Fatalf("request %d: %d packs are left, and %v", at, left, err)
		}
		w.check(t)
	}
}

// TestDamagedRecordIsHeld: what can't be read is reported, what it may name stays, and the rest goes.
func TestDamagedRecordIsHeld(t *testing.T) {
	w := dead(t)
	w.publish(t, "later", chunks(100, 20_000))
	w.remove(t, "later")
	w.written(t, "records/image/new", []byte("rubbish"))
	delete(w.wants, "new")
	before := w.keys(t, string(content.KeyPacks))
	r := w.run(t)
	if len(r.Broken) != 1 || r.Broken[0].Name != "image:new" {
		t.Fatalf("broken: %+v", r.Broken)
	}
	w.same(t, before)
	w.later(48 * time.Hour)
	w.publish(t, "since", chunks(100, 30_000)) // its pack was begun later: the record can't name it
	w.remove(t, "since")
	w.run(t)
	w.later(past)
	r = w.run(t)
	if r.Deleted.Objects != 1 {
		t.Fatalf("%+v", r)
	}
	w.same(t, before)
}

// TestDamagedManifest: a root whose manifest can't be read is marked by its map, and is said to be broken under its own
// name.
func TestDamagedManifest(t *testing.T) {
	w := dead(t)
	head := w.publish(t, "x", chunks(100, 20_000))
	for i := range uint64(20) { // which are read beside it
		w.publish(t, fmt.Sprint("y", i), chunks(2, 30_000+10*i))
	}
	key := head.Manifest.Pack.Key()
	b, _, err := bucket.ReadAll(t.Context(), w, key, pack.SizeMax)
	if err != nil {
		t.Fatal(err)
	}
	b[head.Manifest.Offset+10] ^= 1
	w.written(t, key, b)
	r := w.run(t)
	if len(r.Broken) != 1 || r.Broken[0].Name != "image:x" || r.Deleted.Objects != 1 {
		t.Fatalf("%+v", r)
	}
	w.later(past)
	w.run(t)
	if o, err := w.Get(t.Context(), key, bucket.Range{Length: 1}); err != nil {
		t.Fatal(err)
	} else {
		_ = o.Body.Close()
	}
}

// TestShare: more than the share goes with Yes alone, and the error says how much.
func TestShare(t *testing.T) {
	w := dead(t)
	cfg := w.config()
	cfg.Yes = false
	all := w.keys(t, string(content.KeyPacks))
	r, err := Run(t.Context(), cfg)
	if !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), "--yes") {
		t.Fatal(err)
	}
	if left := r.row("waits for --yes"); left.Objects == 0 || left != r.Going || left != r.Waiting || !r.Beyond || r.row("is deleted").Objects > 0 {
		t.Fatalf("what waits is not said: %+v", r)
	}
	cfg.DryRun = true
	if dry, err := Run(t.Context(), cfg); err != nil || !dry.Beyond || dry.Going != r.Going || dry.row("waits for --yes") != r.Going {
		t.Fatalf("%+v, %v", dry, err)
	}
	cfg.DryRun = false
	w.same(t, all)
	cfg.Share = 0.5
	if r, err := Run(t.Context(), cfg); err != nil || r.Deleted.Objects != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// TestTwoAtOnce: of two runs the one that began first is paused before it deletes, for longer than the grace, and deletes
// nothing.
func TestTwoAtOnce(t *testing.T) {
	for at := 0; ; at++ {
		w := dead(t)
		n, other := 0, false
		var left []string
		w.breaks(func(c mem.Call) mem.Fault {
			if n++; n != at+1 {
				return mem.Fault{}
			}
			f := w.fault
			w.fault = nil
			w.mu.Unlock()
			w.later(past)
			r, err := Run(t.Context(), w.second(t))
			left = w.keys(t, string(content.KeyPacks))
			w.mu.Lock()
			if w.fault, other = f, true; err != nil {
				t.Errorf("the second: %v", err)
			} else if r.Deleted.Objects > 1 {
				t.Errorf("the second: %+v", r)
			}
			return mem.Fault{}
		})
		_, err := Run(t.Context(), w.config())
		w.breaks(nil)
		if !other {
			return
		}
		if now := w.keys(t, string(content.KeyPacks)); !slices.Equal(now, left) {
			t.Fatalf("paused at request %d it went on to delete: %v, %v left before, %v", at, now, left, err)
		}
		w.check(t)
	}
}

// second is another member's.
func (w *world) second(t *testing.T) Config {
	t.Helper()
	key := trust.NewPrivateKey()
	chain, err := w.signer.Issue(trust.Identity{Key: key.Public(), Role: trust.RolePublisher, Farm: "b"}, w.now())
	if err != nil {
		t.Fatal(err)
	}
	cfg := w.config()
	cfg.Signer = trust.Signer{Key: key, Chain: chain}
	return cfg
}

// TestOneAtATime: a run of another that says that it is at it is let go on; one that says nothing any more is not waited for.
func TestOneAtATime(t *testing.T) {
	w := dead(t)
	n := 0
	w.breaks(func(c mem.Call) mem.Fault {
		if c.Op == mem.List && c.Key == string(content.KeyRecords) { // it has its turn by now
			n++
			f := w.fault
			w.fault = nil
			w.mu.Unlock()
			_, err := Run(t.Context(), w.second(t))
			w.mu.Lock()
			w.fault = f
			if !errors.Is(err, content.Running) {
				t.Errorf("beside another: %v", err)
			}
		}
		return mem.Fault{}
	})
	w.run(t)
	if n != 1 {
		t.Fatalf("records were listed %d times", n)
	}
}

// TestSpace: imported, replaced in place ten times, and collected: of what lives there is little more than that.
func TestSpace(t *testing.T) {
	w := newWorld(t)
	what := chunks(500, 1000)
	w.publish(t, "x", what)
	for round := range uint64(10) {
		for i := range uint64(50) {
			what[(i*7+round*31)%500] = 1_000_000*(round+1) + i
		}
		w.publish(t, "x", what)
		w.later(time.Hour)
	}
	for range 4 {
		w.run(t)
		w.later(past)
	}
	w.check(t)
	live, now := int64(500*chunkSize), w.bytes(t)
	t.Logf("%d bytes, and %d live: %.3f", now, live, float64(now)/float64(live))
	if float64(now) > 1.15*float64(live) {
		t.Fatal("more is there than is live")
	}
}

// TestMendedPackGoes: a pack of which a chunk is damaged is written anew once that chunk is stored elsewhere, however little
// of it is dead; then nothing is suspect any more. While the chunk is needed it stays as it is.
func TestMendedPackGoes(t *testing.T) {
	w := newWorld(t)
	what := chunks(500, 1000) // of two runs: what lies in one that is damaged is not referred to again
	head := w.publish(t, "x", what)
	id := head.Node.Pack
	b, _, err := bucket.ReadAll(t.Context(), w, id.Key(), pack.SizeMax)
	if err != nil {
		t.Fatal(err)
	}
	b[5000] ^= 1
	w.written(t, id.Key(), b)
	if err := index.Suspect(t.Context(), w, id); err != nil {
		t.Fatal(err)
	}
	all := w.keys(t, string(content.KeyPacks))
	for range 3 {
		w.later(past)
		w.run(t)
	}
	w.same(t, all)
	w.publish(t, "x", what)
	w.check(t)
	for range 2 {
		w.later(past)
		w.run(t)
	}
	w.check(t)
	if left := w.keys(t, string(content.KeyIndexes)+string(id)); len(left) > 0 {
		t.Fatalf("it is suspect still: %v", left)
	}
	if b, _, err = bucket.ReadAll(t.Context(), w, id.Key(), pack.SizeMax); err != nil || len(b) != pack.SizeMin {
		t.Fatalf("its name has %d bytes, %v", len(b), err)
	}
}
