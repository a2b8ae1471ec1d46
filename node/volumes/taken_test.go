package volumes

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// look has a node look at the records of what it has, as it does now and then.
func (w *world) look(t *testing.T) {
	w.now = w.now.Add(right.SaidFor)
	w.lookAtOwned(t.Context(), right.NewLooks(0, w.now.Add(-time.Hour)))
	w.giveUpLost(t.Context())
	w.orphans.Keep(t.Context())
}

// TestTakenWhileDetached: what a node had detached, and could not bring to the bucket, is an
// orphan when another has taken the volume over: nobody has to attach it to find that.
func TestTakenWhileDetached(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 5, 1)
	p.store.down = true
	if _, err := p.a.Detach(t.Context(), "disk", true); err != nil {
		t.Fatal(err)
	}
	p.store.down = false
	p.b.put(t, "disk", Spec{Takeover: true})
	p.a.look(t)
	if !bytes.Equal(p.a.exported(t, "snapshot:disk@e1-orphan"), shadow) {
		t.Error("the orphan has other bytes")
	}
	if view, err := p.a.Get("disk"); err != nil || view.State == terms.StateAttached {
		t.Errorf("%+v, %v", view, err)
	}
}

// TestTakenBackAtOnce: who takes back what was taken from it, before it has noticed, still
// has what it had before under a name of its own.
func TestTakenBackAtOnce(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 5, 1)
	p.store.down = true
	if _, err := p.a.Detach(t.Context(), "disk", true); err != nil {
		t.Fatal(err)
	}
	p.store.down = false
	p.b.put(t, "disk", Spec{Takeover: true})
	p.a.put(t, "disk", Spec{Takeover: true})
	p.a.is(t, "disk", make([]byte, testSize))
	p.a.look(t)
	if !bytes.Equal(p.a.exported(t, "snapshot:disk@e1-orphan"), shadow) {
		t.Error("beside the volume the orphan has other bytes")
	}
}

// TestTakenBeforeItWasKnownToBeRegistered: a volume whose first commit arrived, and whose
// node did not hear of it, is that volume still when another has taken it: no second name
// has its ID, and what was written is an orphan.
func TestTakenBeforeItWasKnownToBeRegistered(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	_, err := p.a.index.Change("disk", func(e *index.Entry) { // as if it had not heard
		e.Committed, e.Tried = false, []right.Stamp{right.StampOf(e.Volume)}
	})
	if err != nil {
		t.Fatal(err)
	}
	a := p.a.device("disk")
	a.mu.Lock()
	a.right.Stage = right.Uncommitted
	a.mu.Unlock()
	p.a.fill(t, "disk", shadow, 5, 1)
	p.b.put(t, "disk", Spec{Takeover: true})
	if err := p.a.commitLater(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	if list := p.a.List(); len(list) != 1 || list[0].Name != "disk" {
		t.Fatalf("it has another name: %+v", list)
	}
	p.a.look(t)
	if !bytes.Equal(p.a.exported(t, "snapshot:disk@e1-orphan"), shadow) {
		t.Error("the orphan has other bytes")
	}
}

// TestPurgeOfWhatIsLeft: who removes what is left here of a volume that had a name, with its
// snapshots, is told who has the name now; that volume, its snapshots, and its record stay.
func TestPurgeOfWhatIsLeft(t *testing.T) {
	for _, released := range []bool{false, true} {
		p := newPair(t)
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", make([]byte, testSize), 5, 1)
		if _, err := p.a.Detach(t.Context(), "disk", true); err != nil {
			t.Fatal(err)
		}
		p.b.put(t, "disk", Spec{})
		if err := p.b.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
			t.Fatal(err)
		}
		shadow := make([]byte, testSize)
		p.b.put(t, "disk", Spec{Size: testSize})
		p.b.fill(t, "disk", shadow, 5, 2)
		if _, err := p.b.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: terms.Durable}); err != nil {
			t.Fatal(err)
		}
		if err := p.b.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
			t.Fatal(err)
		}
		if released {
			if _, err := p.b.Detach(t.Context(), "disk", true); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Purge: true}); !errors.Is(err, content.ErrConflict) {
			t.Errorf("its name is another's: %v", err)
		}
		if !bytes.Equal(p.b.exported(t, "snapshot:disk@1"), shadow) {
			t.Error("the snapshot has other bytes")
		}
		if _, err := p.b.Find(t.Context(), "disk"); err != nil {
			t.Error(err)
		}
	}
}

// TestTakeoverOfWhatNobodyHolds: a volume whose last holder has lost what it had is taken over
// as the bucket has it, and whoever does so is told what stays behind.
func TestTakeoverOfWhatNobodyHolds(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:1"})
	p.b.put(t, "disk", Spec{Takeover: true})
	if view, err := p.b.Get("disk"); err != nil || !strings.Contains(view.Detail, "stays there, as snapshot:disk@e1-orphan") {
		t.Errorf("%q, %v", view.Detail, err)
	}
}

// TestEndedBeforeItWasKnownToBeRegistered: a volume whose first commit arrived, and whose node
// did not hear of it, is not brought back by that when another has taken and removed it.
func TestEndedBeforeItWasKnownToBeRegistered(t *testing.T) {
	p := newPair(t)
	p.store.unheard(func() { p.a.put(t, "disk", Spec{Size: testSize}) })
	p.b.put(t, "disk", Spec{Takeover: true})
	if err := p.b.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
		t.Fatal(err)
	}
	if err := p.a.commitLater(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	p.a.look(t)
	if view, err := p.a.Get("disk"); err != nil || view.State != terms.StateFailed || !strings.Contains(view.Detail, "freed") || p.store.has(content.KindVolume, "disk") {
		t.Errorf("%+v, %v; it has a record: %t", view, err, p.store.has(content.KindVolume, "disk"))
	}
}

// TestEpochsOfWhatIsNamedAnew: a volume that was registered unheard, taken over and removed, and whose
// name is another's by now, has another name, and no epoch that it had under the old one.
func TestEpochsOfWhatIsNamedAnew(t *testing.T) {
	p := newPair(t)
	p.store.unheard(func() { p.a.put(t, "disk", Spec{Size: testSize}) })
	p.b.put(t, "disk", Spec{Takeover: true})
	had, err := p.store.body("disk")
	if err == nil {
		err = p.b.Remove(t.Context(), "disk", RemoveSpec{})
	}
	if err != nil {
		t.Fatal(err)
	}
	p.b.put(t, "disk", Spec{Size: testSize})
	for _, name := range []string{"disk", "disk.node"} {
		if err := p.a.commitLater(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if body, err := p.store.body("disk.node"); err != nil || body.ID != had.ID || body.Epoch <= had.Epoch {
		t.Errorf("epoch %d, and it had %d: %v", body.Epoch, had.Epoch, err)
	}
}

// TestSnapshotOfWhoHadTheNameBefore: a snapshot that is not durable is not read from another
// volume that has the name by now, though that has a place like its own.
func TestSnapshotOfWhoHadTheNameBefore(t *testing.T) {
	p := newPair(t)
	for i := range 2 {
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", make([]byte, testSize), 5, uint64(i))
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			p.fencedOff(t, "disk")
			if err := errors.Join(p.b.Remove(t.Context(), "disk", RemoveSpec{}), p.a.Remove(t.Context(), "disk", RemoveSpec{})); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, want := range map[string]error{"disk@1": content.ErrConflict, "disk@2": nil} {
		m, err := p.a.momentOfSnapshot(t.Context(), name, p.a.device("disk"))
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		} else if _, _, fork := p.a.Put(t.Context(), "fork", Spec{From: refOf(t, "snapshot:"+name)}); !errors.Is(fork, want) {
			t.Errorf("a fork of %s: %v", name, fork)
		}
	}
}

// TestSnapshotThatStayedBehind: nor is it read from what another has written since it has taken
// the volume over without that.
func TestSnapshotThatStayedBehind(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", make([]byte, testSize), 5, 1)
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.fill(t, "disk", make([]byte, testSize), 5, 2)
	if _, err := p.b.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.b.momentOfSnapshot(t.Context(), "disk@1", p.b.device("disk")); !errors.Is(err, content.ErrConflict) {
		t.Errorf("it is read: %v", err)
	}
	if _, _, err := p.b.Put(t.Context(), "fork", Spec{From: refOf(t, "snapshot:disk@1")}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("it is forked: %v", err)
	}
}

// staysBehind has a snapshot stay, not durable, with who does not hear at once that its volume was
// taken over, and is folded by who has it up to a place with the same numbers.
func (p *pair) staysBehind(t *testing.T, shadow []byte, want fold.Want) *attached {
	t.Helper()
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 4, 1)
	view, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{})
	if err != nil || view.Durable {
		t.Fatalf("%+v, %v", view, err)
	}
	a, call := p.a.device("disk"), p.b.cfg.Call
	p.b.cfg.Call = func(context.Context, trust.PublicKey, string, []byte) ([]byte, error) {
		return nil, content.ErrUnavailable
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.cfg.Call = call
	p.b.fill(t, "disk", make([]byte, testSize), 4, 2)
	if err := p.b.device("disk").folds.Run(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	_ = a.happen(t.Context(), right.Due{}) // it sees whose the volume is
	return a
}

// TestSnapshotIsSettledByItsOwnJournal: a record of who has taken the volume over reaches the place
// of a snapshot that stayed behind, by numbers that are alike; it says nothing of that.
func TestSnapshotIsSettledByItsOwnJournal(t *testing.T) {
	p := newPair(t)
	a := p.staysBehind(t, make([]byte, testSize), fold.Safe)
	_, was, err := p.a.records().Snapshot(t.Context(), "disk@1")
	if body, _ := p.store.body("disk"); err != nil || body.Through() != was.At {
		t.Fatalf("the record reaches %v, and the snapshot is at %v: %v", body.Through(), was.At, err)
	}
	if err := a.folds.Run(t.Context(), fold.Safe); !errors.Is(err, content.ErrFenced) {
		t.Errorf("who has lost it folds it: %v", err)
	}
	if _, body, err := p.a.records().Snapshot(t.Context(), "disk@1"); err != nil || body.Durable {
		t.Errorf("it is durable by another's journal: %v", err)
	}
}

// TestStaleAttachIsSaid: who attaches with a lower generation than the volume has seen is told
// which that was, and which its own.
func TestStaleAttachIsSaid(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize, Generation: 7})
	_, _, err := p.b.Put(t.Context(), "disk", Spec{Takeover: true, Generation: 3})
	if !errors.Is(err, content.Stale) || !strings.Contains(err.Error(), "generation 7 was here, and this one has 3") {
		t.Errorf("attached: %v", err)
	}
}

// TestTakenFromWhoGoesOn: a volume is taken over although its writer flushes without pause, and
// all is there that was acknowledged.
func TestTakenFromWhoGoesOn(t *testing.T) {
	for _, policy := range []string{"farm:2", "origin"} {
		t.Run(policy, func(t *testing.T) {
			p := newHoldingPair(t)
			p.a.put(t, "disk", Spec{Size: testSize, Durability: policy})
			a, begun := p.a.device("disk"), make(chan struct{})
			var flushed atomic.Uint32
			var writing sync.WaitGroup
			writing.Go(func() {
				for i := uint32(1); a.front.WriteAt(t.Context(), binary.LittleEndian.AppendUint32(make([]byte, 508), i), 0, true) == nil; i++ {
					if flushed.Store(i); i == 100 {
						close(begun)
					}
				}
			})
			<-begun
			p.b.put(t, "disk", Spec{Takeover: true})
			writing.Wait()
			sector := make([]byte, 512)
			if err := p.b.device("disk").front.ReadAt(t.Context(), sector, 0); err != nil {
				t.Fatal(err)
			}
			if got, want := binary.LittleEndian.Uint32(sector[508:]), flushed.Load(); got < want || got > want+1 {
				t.Errorf("write %d was acknowledged, and %d is there", want, got)
			}
		})
	}
}

// TestGivenUpOnceItIsBack: a volume that was lost, detached and taken back while somebody was about
// to give it up is served on.
func TestGivenUpOnceItIsBack(t *testing.T) {
	p := newPair(t)
	for _, w := range []*world{p.a, p.b} { // nobody does errands here
		w.cfg.Call = func(context.Context, trust.PublicKey, string, []byte) ([]byte, error) { return nil, nil }
	}
	p.a.put(t, "disk", Spec{Size: testSize})
	p.b.put(t, "disk", Spec{Takeover: true})
	a := p.a.device("disk")
	_ = a.happen(t.Context(), right.Due{}) // it says that it is fenced
	end := p.a.turn("disk")
	done := make(chan struct{})
	go func() { defer close(done); p.a.giveUpLost(t.Context()) }()
	for !a.leaving.Load() {
		runtime.Gosched()
	}
	if err := p.a.detach(t.Context(), "disk", true); err != nil {
		t.Fatal(err)
	}
	if _, err := p.a.Volumes.put(t.Context(), "disk", Spec{Takeover: true, Transport: terms.NBD}); err != nil {
		t.Fatal(err)
	}
	end()
	<-done
	if e, _ := p.a.index.Get("disk"); e.Taken != "" || p.a.state(t, "disk") != terms.StateAttached {
		t.Errorf("it is %s: %s", p.a.state(t, "disk"), e.Taken)
	}
}

// TestSnapshotThatStayedBehindIsPromoted: what is under it is what its own node knew, whatever the record
// says of who has taken the volume over, by numbers that are alike.
func TestSnapshotThatStayedBehindIsPromoted(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.staysBehind(t, shadow, fold.Chunks)
	p.a.cfg.Publish = func(_ context.Context, _ string, body catalog.Image, _ bool) error {
		m, err := p.a.bucket().Open(t.Context(), catalog.Snapshot{Size: testSize, Folded: catalog.Folded{Head: &body.Head}})
		if err != nil {
			return err
		}
		defer m.Close()
		got := make([]byte, testSize)
		if err := m.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, shadow) {
			t.Errorf("promoted, it has other bytes: %v", err)
		}
		return nil
	}
	if err := p.a.Promote(t.Context(), refOf(t, "snapshot:disk@1"), PromoteSpec{Image: "kept", Scope: content.Farm(testFarm)}, nil); err != nil {
		t.Error(err)
	}
}

// goneBase is an origin that lacks what a volume was made from: each record of one is deleted again.
type goneBase struct{ *store }

func (x goneBase) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	r, err := x.store.Commit(ctx, ch)
	if err == nil {
		err = x.store.Delete(ctx, r)
	}
	return r, errors.Join(err, &catalog.GoneError{Kind: ch.Kind, Name: ch.Name, Keys: []string{"packs/x"}})
}

// TestALateVolumeOfWhatIsGone: that its record was deleted again says nothing of the volume, which is served on here, and
// registered once it can be.
func TestALateVolumeOfWhatIsGone(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.store.down = true
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 10, 1)
	p.store.down = false
	p.a.cfg.Registry = goneBase{p.store}
	for range 3 {
		if err := p.a.commitLater(t.Context(), "disk"); !errors.Is(err, content.Gone) {
			t.Fatalf("%v", err)
		}
		if got := p.a.state(t, "disk"); got != terms.StateUncommitted {
			t.Fatalf("it is %s", got)
		}
	}
	p.a.cfg.Registry = p.store
	if err := p.a.commitLater(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	if got := p.a.state(t, "disk"); got != terms.StateAttached {
		t.Errorf("it is %s", got)
	}
	p.a.is(t, "disk", shadow)
}
