package fold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/swept"
)

// TestSegmentsThenChunks: what is written goes to the bucket as a segment, and as chunks
// when that is cheaper, or asked for.
func TestSegmentsThenChunks(t *testing.T) {
	w := newWorld(t)
	w.write(3, 1)
	w.write(700, 2)
	if err := w.fold().Run(t.Context(), Safe); err != nil {
		t.Fatal(err)
	}
	if now := w.record(); len(now.Segments) != 1 || now.Head != nil || now.FoldedAt.IsZero() {
		t.Fatalf("%+v", now)
	}
	w.whole()
	puts := w.store.Count(mem.Put)
	if err := w.fold().Run(t.Context(), Safe); err != nil || w.store.Count(mem.Put) != puts {
		t.Errorf("nothing was written, and %d objects; %v", w.store.Count(mem.Put)-puts, err)
	}
	w.write(3, 4)
	if err := w.fold().Run(t.Context(), Chunks); err != nil {
		t.Fatal(err)
	}
	if now := w.record(); len(now.Segments) != 0 || now.Head == nil || now.Base != w.journal.base || len(w.journal.writes) > 0 {
		t.Fatalf("%+v", now)
	}
	w.whole()
	if left := w.store.Keys("journals/"); len(left) > 0 {
		t.Errorf("no record names %v", left)
	}
	for i := range int64(content.ChunkSizeDefault / block) {
		w.write(64+i, byte(i+1))
	}
	if err := w.fold().Run(t.Context(), Safe); err != nil {
		t.Fatal(err)
	}
	if now := w.record(); len(now.Segments) != 0 || len(now.Lineage) != 1 {
		t.Errorf("a whole chunk was written, and went as %+v", now)
	}
	w.whole()
	for i := range int64(content.ChunkSizeDefault / block) {
		w.write(64+i, 0)
	}
	if err := w.fold().Run(t.Context(), Safe); err != nil {
		t.Fatal(err)
	}
	if src := (root{head: *w.record().Head}); src.head.Root.Map == (content.CID{}) {
		t.Error("the other chunks are gone, too")
	}
	w.whole()
}

// steps are the failpoints that the code has.
func steps(t *testing.T) (out []Step) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "fold.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Step") {
			return true
		}
		out = append(out, Step(strings.Trim(spec.Values[0].(*ast.BasicLit).Value, `"`)))
		return true
	})
	if len(out) < 9 {
		t.Fatalf("only %v found", out)
	}
	return out
}

// TestACrashAtEachStep: the process ends at each step of a fold, of both kinds and with a
// snapshot that waits; the next one goes on, and nothing is lost on the way.
func TestACrashAtEachStep(t *testing.T) {
	for _, step := range steps(t) {
		t.Run(string(step), func(t *testing.T) {
			w := newWorld(t)
			reached := false
			w.at = func(s Step) error {
				if s == step && !reached {
					reached = true
					return errFailed
				}
				return nil
			}
			for round, want := range []Want{Safe, Safe, Chunks, Safe, Chunks} {
				w.write(int64(round*40), byte(round+1))
				if round%2 == 1 {
					w.snapshot()
				}
				w.write(int64(round*41), byte(round+100))
				if err := w.fold().Run(t.Context(), want); err == nil {
					w.whole()
				} else if !errors.Is(err, errFailed) {
					t.Fatal(err)
				}
				w.readableAll(t)
			}
			if !reached {
				t.Fatal("no fold comes by this step")
			}
			if err := w.fold().Run(t.Context(), Chunks); err != nil {
				t.Fatal(err)
			}
			w.whole()
			if len(w.pending) > 0 || len(w.settled) != 2 {
				t.Errorf("%d snapshots wait, %d are durable", len(w.pending), len(w.settled))
			}
		})
	}
}

// readableAll fails unless what the record names, and the journal behind it, are the disk.
func (w *world) readableAll(t *testing.T) {
	t.Helper()
	now := w.record()
	out := w.elsewhere(now)
	if w.journal.base.Seq > now.Through().Seq {
		t.Fatalf("the journal was cut at %v, and the record has all up to %v", w.journal.base, now.Through())
	}
	for _, x := range w.journal.writes {
		if x.Seq > now.Through().Seq {
			copy(out[x.Block*block:], x.Data)
		}
	}
	if !bytes.Equal(out, w.disk) {
		t.Fatalf("the record and the journal behind it are not the disk: %+v", now)
	}
}

// TestFaultsOfTheStore: each call of a fold fails in turn, applied or not, in each way; the
// folds after it, with a store that is well, bring everything.
func TestFaultsOfTheStore(t *testing.T) {
	faults := map[string]error{"lost": bucket.ErrUnknown, "busy": bucket.ErrBusy, "away": content.ErrUnavailable, "open": bucket.ErrOpen}
	for name, cause := range faults {
		for _, applied := range []bool{false, true} {
			if applied && name != "lost" {
				continue // what the store says of itself is so
			}
			calls := 0
			for hit := true; hit; calls++ {
				synctest.Test(t, func(t *testing.T) { hit = failsOnce(t, calls, mem.Fault{Err: cause, Applied: applied}) })
			}
			t.Logf("%s, applied %t: %d calls", name, applied, calls)
		}
	}
}

// failsOnce folds with a fault at one call of the store, and reports whether there was
// that one.
func failsOnce(t *testing.T, call int, fault mem.Fault) (hit bool) {
	w := newWorld(t)
	n := 0
	w.failing(func(mem.Call) mem.Fault {
		if n++; n-1 != call {
			return mem.Fault{}
		}
		hit = true
		return fault
	})
	for round, want := range []Want{Safe, Safe, Chunks, Safe} {
		w.write(int64(round*40), byte(round+1))
		if round == 1 {
			w.snapshot()
		}
		w.write(int64(round*41), byte(round+100))
		if err := w.fold().Run(t.Context(), want); errors.Is(err, content.ErrFenced) {
			t.Fatalf("%v at call %d: %v", fault, call, err)
		}
	}
	w.failing(nil)
	for range 2 { // the first may learn that its last commit was written
		_ = w.fold().Run(t.Context(), Safe)
	}
	if err := w.fold().Run(t.Context(), Chunks); err != nil {
		t.Fatalf("%v at call %d: %v", fault, call, err)
	}
	w.whole()
	return hit
}

// TestAKeyThatIsTakenByOtherBytes: whatever lies there, the journal goes another way.
func TestAKeyThatIsTakenByOtherBytes(t *testing.T) {
	w := newWorld(t)
	w.write(1, 1)
	at, _ := w.journal.Seal(t.Context())
	key := content.SegmentRef{Volume: w.journal.id, Epoch: 1, Through: at}.Key()
	if _, err := w.store.Put(t.Context(), key, bucket.Bytes([]byte("other")), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	if err := w.fold().Run(t.Context(), Safe); err != nil {
		t.Fatal(err)
	}
	w.whole()
}

// TestPacksThatAreGoneAreWrittenAgain: a fold is held up for so long that what it stored, or what it builds on, is
// collected before its record names it, or is about to be. The node's own clock may say nothing of that; the write of the
// record may fail too, applied or not.
func TestPacksThatAreGoneAreWrittenAgain(t *testing.T) {
	sweeps := map[string]func(*testing.T, *world, ...string){
		"collected": func(t *testing.T, w *world, keys ...string) { swept.Collect(t, w.store, keys...) },
		"condemned": func(t *testing.T, w *world, keys ...string) { swept.Tombstone(t, w.store, true, keys...) },
	}
	faults := map[string]mem.Fault{"": {}, "not applied": {Err: bucket.ErrUnknown}, "applied": {Err: bucket.ErrUnknown, Applied: true}}
	for how, sweep := range sweeps {
		for name, fault := range faults {
			for _, old := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s old ones %t", how, name, old), func(t *testing.T) { sweepWithin(t, sweep, fault, old) })
			}
		}
	}
}

func sweepWithin(t *testing.T, sweep func(*testing.T, *world, ...string), fault mem.Fault, old bool) {
	w := newWorld(t)
	for i := range int64(64) {
		w.write(i*16, byte(i+1))
	}
	if err := w.fold().Run(t.Context(), Chunks); err != nil {
		t.Fatal(err)
	}
	before := w.store.Keys("packs/")
	w.write(5, 77)
	done := false
	w.at = func(s Step) error {
		if s != StepPacked || done {
			return nil
		}
		done = true
		w.pass(48 * time.Hour)
		keys := before
		if !old {
			keys = swept.Packs(t, w.store, before...)
		} else {
			w.journal.source = whole{w.disk} // as a cache would
		}
		sweep(t, w, keys...)
		w.failing(func(c mem.Call) mem.Fault {
			if c.Op != mem.Put || !strings.HasPrefix(c.Key, "records/") {
				return mem.Fault{}
			}
			w.fault = nil
			return fault
		})
		return nil
	}
	if err := w.fold().Run(t.Context(), Chunks); err != nil {
		t.Fatal(err)
	}
	for _, key := range w.store.Keys("garbage/") { // what is condemned goes, however late
		w.at = nil
		for _, gone := range swept.Condemned(t, w.store, key) {
			if err := w.store.Delete(t.Context(), gone); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.whole()
}

// TestWhatIsNamedStaysWhileAFoldSleeps: between the record and the cut all else may go.
func TestWhatIsNamedStaysWhileAFoldSleeps(t *testing.T) {
	w := newWorld(t)
	w.write(3, 3)
	w.at = func(s Step) error {
		if s == StepFolded {
			w.pass(30 * 24 * time.Hour)
			m, err := pack.NewReader(w.store).ReadManifest(t.Context(), *w.record().Head)
			if err != nil {
				return err
			}
			named := []string{}
			for _, p := range m.Packs {
				named = append(named, p.ID.Key())
			}
			swept.Collect(t, w.store, swept.Packs(t, w.store, named...)...)
		}
		return nil
	}
	for range 3 {
		w.write(5, 77)
		if err := w.fold().Run(t.Context(), Chunks); err != nil {
			t.Fatal(err)
		}
	}
	w.whole()
}

// TestWhatSnapshotsMayNameStays: segments that begin before Shared are never deleted.
func TestWhatSnapshotsMayNameStays(t *testing.T) {
	w := newWorld(t)
	for round := range int64(4) {
		w.write(round, byte(round+1))
		if round == 1 {
			w.snapshot()
		}
		if err := w.fold().Run(t.Context(), Safe); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.fold().Run(t.Context(), Chunks); err != nil {
		t.Fatal(err)
	}
	if left := w.store.Keys("journals/"); len(left) != 2 {
		t.Errorf("left are %v", left)
	}
	w.whole()
}

// TestAFencedFoldEndsThere: another node has the next epoch, and nothing here is cut.
func TestAFencedFoldEndsThere(t *testing.T) {
	for _, want := range []Want{Safe, Chunks} {
		w := newWorld(t)
		w.write(1, 1)
		known, body := w.known, w.body
		if err := w.revise(t.Context(), func(v *catalog.Volume) error { v.Epoch++; return nil }); err != nil {
			t.Fatal(err)
		}
		w.learn(known, body)
		if err := w.fold().Run(t.Context(), want); !errors.Is(err, content.ErrFenced) {
			t.Errorf("%v", err)
		}
		if len(w.journal.writes) != 1 {
			t.Error("the journal was cut")
		}
	}
}

// whole is a disk as a volume.Source.
type whole struct{ disk []byte }

func (s whole) TryReadChunk(index uint64, off int, p []byte) bool {
	copy(p, s.disk[int(index)*content.ChunkSizeDefault+off:])
	return true
}
func (s whole) ReadChunk(_ context.Context, index uint64, off int, p []byte) error {
	s.TryReadChunk(index, off, p)
	return nil
}
func (s whole) NextData(context.Context, uint64) (uint64, uint64, error) {
	return 0, uint64(len(s.disk) / content.ChunkSizeDefault), nil
}

// deed is a step of TestFoldsUnderFaults.
type deed struct {
	do      int
	block   int64
	fill    byte
	crash   Step
	beside  Step // a snapshot is made there
	each    int
	applied bool
	want    Want
}

// TestFoldsUnderFaults: any mixture of writes, snapshots, folds, crashes and faults.
func TestFoldsUnderFaults(t *testing.T) {
	deeds := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) deed {
		return deed{
			rapid.IntRange(0, 3).Draw(r, "do"), rapid.Int64Range(0, diskSize/block-1).Draw(r, "block"), rapid.Byte().Draw(r, "fill"),
			rapid.SampledFrom(append(steps(t), "none")).Draw(r, "crash at"), rapid.SampledFrom(append(steps(t), "none")).Draw(r, "a snapshot at"), rapid.IntRange(1, 7).Draw(r, "a fault each"),
			rapid.Bool().Draw(r, "applied"), rapid.SampledFrom([]Want{Safe, Safe, Chunks}).Draw(r, "want"),
		}
	}), 1, 12)
	rapid.Check(t, func(r *rapid.T) {
		var err error
		row := deeds.Draw(r, "deeds")
		synctest.Test(t, func(t *testing.T) { err = underFaults(t, row) })
		if err != nil {
			r.Fatal(err)
		}
	})
}

// steps is what happens at the steps of a fold.
func (w *world) steps(d deed, snapshots map[content.Position][]byte) func(Step) error {
	return func(s Step) error {
		if s == d.beside {
			fault := w.fault
			w.failing(nil)
			w.write(d.block, d.fill)
			if at, made := w.snapshot(); made {
				snapshots[at] = bytes.Clone(w.disk)
			}
			w.failing(fault)
		}
		if s == d.crash {
			return errFailed
		}
		return nil
	}
}

func underFaults(t *testing.T, row []deed) error {
	w := newWorld(t)
	snapshots := map[content.Position][]byte{}
	for _, d := range row {
		switch d.do {
		case 0, 1:
			w.write(d.block, d.fill)
		case 2:
			if at, made := w.snapshot(); made {
				snapshots[at] = bytes.Clone(w.disk)
			}
		case 3:
			w.at = w.steps(d, snapshots)
			n := 0
			w.failing(func(mem.Call) mem.Fault {
				if n++; d.each < 6 && n%d.each == 0 {
					return mem.Fault{Err: bucket.ErrUnknown, Applied: d.applied}
				}
				return mem.Fault{}
			})
			if err := w.fold().Run(t.Context(), d.want); errors.Is(err, content.ErrFenced) {
				return err
			}
			w.at = nil
			w.failing(nil)
		}
	}
	for range 3 {
		_ = w.fold().Run(t.Context(), Safe)
	}
	if err := w.fold().Run(t.Context(), Chunks); err != nil {
		return err
	}
	w.whole()
	for at, want := range snapshots {
		if v, ok := w.settled[at]; !ok || !bytes.Equal(w.elsewhere(v), want) {
			return fmt.Errorf("snapshot of %v: durable %t, or other bytes", at, ok)
		}
	}
	return nil
}
