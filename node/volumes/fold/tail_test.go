package fold

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
	"github.com/grangemesh/grange/simulations/mem"
)

// taken is what a taker inherits: what the record names, and the tails behind it.
func (w *world) taken(epoch uint64) []byte {
	w.t.Helper()
	now := w.record()
	chain, err := EndEpoch(w.t.Context(), w.store, now.ID, epoch, now.Through())
	if err != nil {
		w.t.Fatal(err)
	}
	out := w.elsewhere(now)
	for _, s := range chain {
		w.replay(s, out)
	}
	return out
}

func (w *world) flush() error {
	w.journal.mu.Lock()
	end := w.journal.end
	w.journal.mu.Unlock()
	return w.tails.Persist(w.t.Context(), w.journal, end)
}

func (w *world) newTails(after content.Position) {
	w.tails = &Tails{line: &Line{Bucket: w.bucket}, dir: w.t.TempDir(), last: after}
	w.t.Cleanup(w.tails.Close)
}

// TestAFlushIsInTheBucket: all that was flushed is there for a taker, through folds and
// snapshots; nothing is acknowledged once it took over.
func TestAFlushIsInTheBucket(t *testing.T) {
	w := newWorld(t)
	w.newTails(content.Position{})
	for round := range 12 {
		w.write(int64(round*30), byte(round+1))
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		puts := w.store.Count(mem.Put)
		if err := w.flush(); err != nil || w.store.Count(mem.Put) != puts {
			t.Fatalf("nothing to flush, and %d puts; %v", w.store.Count(mem.Put)-puts, err)
		}
		want := Safe
		switch {
		case round == 7:
			want = Chunks
		case round%3 != 2:
			continue
		}
		if err := w.fold().Run(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if tails := len(w.store.Keys("journals/")) - len(w.record().Segments); tails != 0 {
			t.Errorf("%d tails are left that the record covers", tails)
		}
	}
	for range 2 { // one that dies, and the next
		if !bytes.Equal(w.taken(1), w.disk) {
			t.Error("a taker lacks what was flushed")
		}
	}
	was := bytes.Clone(w.disk)
	w.write(1, 200)
	if err := w.flush(); !errors.Is(err, content.ErrFenced) {
		t.Errorf("after the epoch ended: %v", err)
	}
	if !bytes.Equal(w.taken(1), was) {
		t.Error("what was not acknowledged came after all")
	}
	now := w.record() // the taker goes on in the next epoch
	chain, err := EndEpoch(t.Context(), w.store, now.ID, 1, now.Through())
	if err != nil {
		t.Fatal(err)
	}
	copy(w.disk, was)
	if len(chain) != 0 {
		t.Errorf("the record has all, and %d tails", len(chain))
	}
	w.journal = &memory{id: now.ID, epoch: 2, end: now.Through()}
	w.newTails(w.journal.end)
	w.write(2, 201)
	if err := w.flush(); err != nil || !bytes.Equal(w.taken(2), w.disk) {
		t.Errorf("the next epoch's flush: %v", err)
	}
}

// TestEachAcknowledgedFlushIsInherited: a writer flushes without pause while another ends
// its epoch, with lost replies on both sides.
func TestEachAcknowledgedFlushIsInherited(t *testing.T) {
	for round := range 60 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.newTails(content.Position{})
			random := rand.New(rand.NewPCG(uint64(round), 9))
			var lock sync.Mutex
			w.failing(func(c mem.Call) mem.Fault {
				lock.Lock()
				defer lock.Unlock()
				if c.Op == mem.Put && random.IntN(3) == 0 {
					return mem.Fault{Err: bucket.ErrUnknown, Applied: random.IntN(2) == 0}
				}
				return mem.Fault{}
			})
			var acknowledged []byte
			after := random.IntN(20)
			var took sync.WaitGroup
			for i := 0; ; i++ {
				if i == after {
					took.Go(func() {
						for {
							if _, err := EndEpoch(t.Context(), w.store, w.body.ID, 1, content.Position{}); err == nil {
								return
							}
						}
					})
				}
				w.write(int64(i%1000), byte(i+1))
				err := w.flush()
				if errors.Is(err, content.ErrFenced) {
					break
				}
				if err == nil {
					acknowledged = bytes.Clone(w.disk)
				}
			}
			took.Wait()
			w.failing(nil)
			got := w.taken(1)
			if acknowledged != nil && !bytes.Equal(got, acknowledged) && !bytes.Equal(got, w.disk) {
				// what was never acknowledged may have come: each block has then a later fill
				for at := 0; at < len(got); at += block {
					if acknowledged[at] != 0 && got[at] == 0 {
						t.Fatalf("block %d was acknowledged, and a taker has nothing there", at/block)
					}
				}
			}
		})
	}
}

// TestTailsOfAFoldBegin where the record ends, though a snapshot waited and the fold ended
// in between.
func TestTailsOfAFoldBegin(t *testing.T) {
	for _, step := range steps(t) {
		w := newWorld(t)
		w.newTails(content.Position{})
		for range 3 {
			w.write(5, 1)
			at, err := w.fold().Seal(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w.pending = append(w.pending, at)
			if err := w.revise(t.Context(), func(v *catalog.Volume) error { v.Shared = at.Seq; return nil }); err != nil {
				t.Fatal(err)
			}
			w.write(6, 2)
			if err := w.flush(); err != nil {
				t.Fatal(err)
			}
			w.at = func(s Step) error {
				if s == step {
					return errFailed
				}
				return nil
			}
			_ = w.fold().Run(t.Context(), Chunks)
			if !bytes.Equal(w.taken(9), w.disk) {
				t.Fatalf("after %s a taker lacks what was flushed", step)
			}
		}
	}
}

// policed gives the volume a Line, by whose tails its flushes go once its record says
// `origin`.
func (w *world) policed() *Line {
	return &Line{Bucket: w.bucket, Dir: func(content.VolumeID) string { return w.t.TempDir() }}
}

// TestThePolicyChangesWithinAFold, to `origin`, at each step of it, which then goes on, or
// ends there: whoever takes the volume over has all that was flushed since, whether a
// snapshot waits behind the record or not.
func TestThePolicyChangesWithinAFold(t *testing.T) {
	for _, step := range steps(t) {
		for _, crash := range []bool{false, true} {
			for _, waits := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s crash %t waits %t", step, crash, waits), func(t *testing.T) { changesAt(t, step, crash, waits) })
			}
		}
	}
}

func changesAt(t *testing.T, step Step, crash, waits bool) {
	w := newWorld(t)
	line := w.policed()
	config := w.config()
	config.Tails = func() *Tails { return line.Of(w.record()) }
	line.Ends = config.Pending
	check := func(when string) {
		t.Helper()
		w.tails = line.Of(w.record())
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(w.taken(9), w.disk) {
			t.Fatalf("%s a taker lacks what was flushed", when)
		}
	}
	changed := false
	config.At = func(s Step) error {
		if s != step || changed {
			return nil
		}
		changed = true
		if waits {
			w.snapshot()
			w.write(9, 9)
		}
		if err := w.revise(t.Context(), func(v *catalog.Volume) error { v.Policy = catalog.PolicyOrigin; return nil }); err != nil {
			return err
		}
		w.write(7, 7)
		check("at once")
		if crash {
			return errFailed
		}
		return nil
	}
	f := New(config)
	for round, want := range []Want{Safe, Safe, Chunks} {
		w.write(int64(round), byte(round+1))
		if round == 1 {
			w.snapshot()
		}
		w.write(50, byte(round+1))
		_ = f.Run(t.Context(), want)
		if changed {
			check("after that fold")
		}
	}
	if !changed {
		t.Fatal("no fold comes by this step")
	}
	for round, want := range []Want{Safe, Safe, Chunks} {
		w.write(int64(round), byte(round+100))
		check("later")
		if err := f.Run(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		check("after a fold")
	}
	if len(w.pending) > 0 {
		t.Error("a snapshot is not durable")
	}
}

func goldenTail() content.SegmentRef {
	return content.SegmentRef{Volume: content.VolumeID{1, 15: 2}, Epoch: 7, After: content.Position{Number: 3, Seq: 40}, Through: content.Position{Number: 5, Seq: 99}, Bytes: 1 << 20, Sum: [16]byte{8, 15: 9}}
}

func TestGoldenTails(t *testing.T) {
	end := goldenTail()
	end.Through, end.Bytes, end.Sum = end.After, 0, [16]byte{}
	for name, ref := range map[string]content.SegmentRef{"tail": goldenTail(), "tail.end": end} {
		b := encodeTail(ref)
		golden.Check(t, name, b)
		if got, err := decodeTail(b); err != nil || got != ref {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

func FuzzTail(f *testing.F) {
	f.Add(encodeTail(goldenTail()))
	f.Fuzz(func(t *testing.T, b []byte) {
		ref, err := decodeTail(b)
		if err == nil && !bytes.Equal(encodeTail(ref), b) {
			t.Errorf("%x is read as %+v", b, ref)
		}
		if err != nil && !errors.Is(err, content.ErrCorrupt) {
			t.Error(err)
		}
	})
}
