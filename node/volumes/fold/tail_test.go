package fold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
)

// taken is what a taker inherits: what the record names, and the tails behind it.
func (w *world) taken(epoch uint64) []byte {
	w.t.Helper()
	now := w.record()
	chain, err := w.endEpoch(now, epoch)
	if err != nil {
		w.t.Fatal(err)
	}
	out := w.elsewhere(now)
	for _, s := range chain {
		w.replay(s, out)
	}
	return out
}

// endEpoch is what another node does.
func (w *world) endEpoch(now catalog.Volume, epoch uint64) ([]journal.AdoptedSegment, error) {
	now.Epoch, now.Policy = epoch, catalog.PolicyOrigin
	return (&Tails{Bucket: func() (bucket.Bucket, error) { return w.store, nil }}).EndEpoch(w.t.Context(), now)
}

func (w *world) flush() error {
	w.journal.mu.Lock()
	end := w.journal.end
	w.journal.mu.Unlock()
	return w.tails.Persist(w.t.Context(), end)
}

func (w *world) newTails(after content.Position) {
	w.tails = w.policed()
	w.tails.Begin(after)
	w.tails.journal = w.journal
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
		named := 0
		for _, s := range w.record().Segments {
			named += max(1, s.Tails)
		}
		if tails := len(w.store.Keys("journals/")) - named; tails != 0 {
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
	chain, err := w.endEpoch(now, 1)
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
							if _, err := w.endEpoch(catalog.Volume{ID: w.body.ID}, 1); err == nil {
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

// TestTailsUnderFaults: any mixture of writes, flushes, snapshots, folds that name tails,
// takeovers, crashes and faults. A taker has what was flushed, and the disk just as it was at
// one place; a snapshot stays what it was.
func TestTailsUnderFaults(t *testing.T) {
	deeds := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) deed {
		return deed{
			rapid.IntRange(0, 8).Draw(r, "do"), rapid.Int64Range(0, diskSize/block-1).Draw(r, "block"), rapid.Byte().Draw(r, "fill"),
			rapid.SampledFrom(append(steps(t), "none", "none", "none")).Draw(r, "crash at"), rapid.SampledFrom(append(steps(t), "none")).Draw(r, "a snapshot at"), rapid.IntRange(1, 12).Draw(r, "a fault each"),
			rapid.Bool().Draw(r, "applied"), rapid.SampledFrom([]Want{Safe, Safe, Safe, Chunks}).Draw(r, "want"),
		}
	}), 1, 30)
	rapid.Check(t, func(r *rapid.T) {
		var err error
		row := deeds.Draw(r, "deeds")
		synctest.Test(t, func(t *testing.T) { err = tailsUnderFaults(t, row) })
		if err != nil {
			r.Fatal(err)
		}
	})
}

func tailsUnderFaults(t *testing.T, row []deed) error {
	w := newWorld(t)
	w.tailsBehind(content.Position{})
	disks := map[uint64][]byte{0: bytes.Clone(w.disk)} // by the seq of the last write
	snapshots := map[content.Position][]byte{}
	flushed := uint64(0)
	for _, d := range row {
		n := 0
		w.failing(func(mem.Call) mem.Fault {
			if n++; d.each < 8 && n%d.each == 0 {
				return mem.Fault{Err: bucket.ErrUnknown, Applied: d.applied}
			}
			return mem.Fault{}
		})
		switch d.do {
		case 0, 1, 2:
			w.write(d.block, d.fill)
			disks[w.journal.end.Seq] = bytes.Clone(w.disk)
		case 3, 4, 5:
			if end := w.journal.end.Seq; w.flush() == nil {
				flushed = end
			}
		case 6:
			w.failing(nil)
			if at, made := w.snapshot(); made {
				snapshots[at] = bytes.Clone(w.disk)
			}
		case 7:
			w.at = w.steps(d, snapshots)
			if err := w.fold().Run(t.Context(), d.want); errors.Is(err, content.ErrFenced) {
				return err
			}
			w.at = nil
			for at, disk := range snapshots { // some were made beside the fold
				disks[at.Seq] = disk
			}
		case 8:
			w.failing(nil)
			if err := w.takenOver(disks, flushed); err != nil {
				return err
			}
		}
	}
	w.failing(nil)
	for range 3 {
		_ = w.fold().Run(t.Context(), Safe)
	}
	if err := w.takenOver(disks, flushed); err != nil {
		return err
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

func (w *world) tailsBehind(at content.Position) {
	w.newTails(at)
	w.tails.Ends = w.config().Pending
}

// takenOver ends the epoch, fails unless what is there is one of the disks, with all that was
// flushed, and goes on in the next epoch with the journal that is here.
func (w *world) takenOver(disks map[uint64][]byte, flushed uint64) error {
	known, err := w.catalog.Get(w.t.Context(), content.KindVolume, "disk")
	if err != nil {
		return err
	}
	now, err := catalog.DecodeVolume(content.NewCodec(), known.Body)
	if err != nil {
		return err
	}
	w.learn(known, now)
	chain, err := w.endEpoch(now, now.Epoch)
	if err != nil {
		return err
	}
	out, end := w.elsewhere(now), now.Through()
	for _, s := range chain {
		w.replay(s, out)
		end = s.Ref.Through
	}
	if end.Seq < flushed || !bytes.Equal(out, disks[end.Seq]) {
		return fmt.Errorf("a taker has all up to %d, where %d were flushed, or other bytes; the record: %+v", end.Seq, flushed, now)
	}
	w.journal.epoch = now.Epoch + 1
	w.tailsBehind(end)
	return w.revise(w.t.Context(), func(v *catalog.Volume) error { v.Epoch++; return nil })
}

// TestARecordNamesTails: a fold after flushes sends nothing more; what it names is read by who
// takes the volume over, and goes when the record does without it.
func TestARecordNamesTails(t *testing.T) {
	w := newWorld(t)
	w.newTails(content.Position{})
	f := w.fold()
	for round := range int64(3) {
		for i := range int64(5) {
			w.write(round*320+i*64, byte(round*5+i+1))
			if err := w.flush(); err != nil {
				t.Fatal(err)
			}
		}
		puts := w.bytesPut
		if err := f.Run(t.Context(), Safe); err != nil || w.bytesPut != puts {
			t.Fatalf("a fold sent %d bytes more, %v", w.bytesPut-puts, err)
		}
		w.whole()
	}
	now := w.record()
	if len(now.Segments) != 3 || tailsIn(now.Segments) != 15 {
		t.Errorf("the record names %+v", now.Segments)
	}
	if err := w.store.Delete(t.Context(), w.store.Keys("journals/")[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := InBucket(t.Context(), w.bucket, now.Segments)[0].Open(); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("a tail that is gone: %v", err)
	}
	now.Segments[1].Sum[0]++
	if _, err := InBucket(t.Context(), w.bucket, now.Segments[1:])[0].Open(); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("other tails than it names: %v", err)
	}
	w.write(1, 99)
	if err := f.Run(t.Context(), Chunks); err != nil {
		t.Fatal(err)
	}
	if left := w.store.Keys("journals/"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	w.whole()
}

// TestTailsOfTwoEpochs: a node takes its own volume's next epoch between two flushes. What the
// record names of them is read by who takes the volume over.
func TestTailsOfTwoEpochs(t *testing.T) {
	w := newWorld(t)
	w.newTails(content.Position{})
	f := w.fold()
	for i := range int64(2) {
		w.journal.epoch = uint64(i + 1)
		if err := w.revise(t.Context(), func(v *catalog.Volume) error { v.Epoch = w.journal.epoch; return nil }); err != nil {
			t.Fatal(err)
		}
		w.write(i*64, byte(i+1))
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Run(t.Context(), Safe); err != nil {
		t.Fatal(err)
	}
	w.whole()
}

// TestAnEpochThatWasEndedInVain: whoever ended it died before it took the volume. Its writer
// takes the next epoch, and goes on; a copy of the writer, which has written, stops it.
func TestAnEpochThatWasEndedInVain(t *testing.T) {
	for _, copied := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) { endedInVain(t, copied) })
	}
}

func endedInVain(t *testing.T, copied bool) {
	w := newWorld(t)
	w.newTails(content.Position{})
	w.journal.epoch = 1
	begun, outbid := time.Now(), 0
	w.tails.Owned = func(context.Context) error { return nil }
	w.tails.Outbid = func(_ context.Context, epoch uint64) error {
		outbid++
		w.journal.epoch = epoch + 1
		return w.revise(t.Context(), func(v *catalog.Volume) error { v.Epoch = epoch + 1; return nil })
	}
	w.write(0, 1)
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	if copied {
		at := w.tails.Through()
		ref := content.SegmentRef{Volume: w.body.ID, Epoch: 1, After: at, Through: content.Position{Number: at.Number + 1, Seq: at.Seq + 1}, Bytes: 1}
		if _, err := w.store.Put(t.Context(), ref.TailKey(), bucket.Bytes(append(catalog.EncodeTail(ref), 0)), bucket.IfAbsent()); err != nil {
			t.Fatal(err)
		}
	} else if _, err := w.endEpoch(w.record(), 1); err != nil {
		t.Fatal(err)
	}
	w.write(64, 2)
	err := w.flush()
	if copied {
		if !errors.Is(err, content.ErrFenced) || outbid > 0 {
			t.Errorf("beside a copy: %v, %d epochs were taken", err, outbid)
		}
		return
	}
	if took := time.Since(begun); err != nil || outbid != 1 || took < takingMin {
		t.Fatalf("the writer: %v after %s, %d epochs were taken", err, took, outbid)
	}
	if err := w.fold().Run(t.Context(), Safe); err != nil {
		t.Fatal(err)
	}
	w.whole()
}

// TestARecordNamesTailsAboutVainEnds: a node that was slower than the writer has left ends of the
// epoch where no tail came, as the journal went on by several segments: what the record names is
// read all the same.
func TestARecordNamesTailsAboutVainEnds(t *testing.T) {
	w := newWorld(t)
	w.newTails(content.Position{})
	f := w.fold()
	for i := range int64(6) {
		w.write(i*64, byte(i+1))
		if i%3 == 2 {
			if err := w.flush(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		at, err := w.journal.Seal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.journal.Release(at)
	}
	if ended, err := endAt(t.Context(), w.store, content.SegmentRef{Volume: w.body.ID, Epoch: w.journal.epoch}, 2); ended || err != nil {
		t.Fatalf("the writer was not quicker: %v", err)
	}
	if err := f.Run(t.Context(), Safe); err != nil {
		t.Fatal(err)
	}
	if now := w.record(); tailsIn(now.Segments) != 2 {
		t.Errorf("the record names %+v", now.Segments)
	}
	w.whole()
}

// policed gives the volume tails, by which its flushes go once its record says `origin`.
func (w *world) policed() *Tails {
	return &Tails{Bucket: w.bucket, Dir: w.t.TempDir}
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
	config.Tails = func() *Tails { return line.Of(w.record(), w.journal) }
	line.Ends = config.Pending
	check := func(when string) {
		t.Helper()
		w.tails = line.Of(w.record(), w.journal)
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(w.taken(9), w.disk) {
			t.Fatalf("%s a taker lacks what was flushed", when)
		}
	}
	changed := false
	w.at = func(s Step) error {
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
	f := killable{New(config)}
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
