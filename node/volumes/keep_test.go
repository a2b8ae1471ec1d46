package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// flush is a flush without the gate.
func (w *world) flush(t *testing.T, name string) {
	t.Helper()
	if err := w.device(name).vol.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotsOnThisDiskAreKept makes more of them than anything else remembers, while the
// bucket is away and without a start in between: each reads as the volume was, and gets there.
func TestSnapshotsOnThisDiskAreKept(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	var states [][]byte
	for n := range uint64(6) {
		p.a.fill(t, "disk", shadow, 12, n)
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil { // of the same place
			t.Fatal(err)
		}
		states = append(states, bytes.Clone(shadow), bytes.Clone(shadow))
	}
	for _, id := range []uint64{2, 4} { // one of two of a place goes
		if err := p.a.RemoveSnapshot(t.Context(), content.Ref{Kind: content.KindSnapshot, Name: "disk", Seq: id}.RecordName()); err != nil {
			t.Fatal(err)
		}
		states[id-1] = nil
	}
	check := func(when string) {
		t.Helper()
		for n, want := range states {
			if want != nil && !bytes.Equal(p.a.exported(t, fmt.Sprintf("snapshot:disk@%d", n+1)), want) {
				t.Errorf("%s: snapshot %d reads other bytes", when, n+1)
			}
		}
	}
	check("here")
	if err := p.a.Settle(t.Context(), "disk@1"); err != nil {
		t.Fatal(err)
	}
	check("in the bucket")
}

// TestServedUnconfirmedThenConfirmed: what an origin volume writes after it was served without
// the origin is of the epoch that the record says, so that its flushes pass, and a takeover
// ends them.
func TestServedUnconfirmedThenConfirmed(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: catalog.PolicyOrigin})
	p.a.fill(t, "disk", shadow, 3, 1)
	p.a.flush(t, "disk")
	p.a = p.a.again(t)
	p.join(p.a)
	p.store.down = true
	p.a.openAll(t.Context())
	p.a.fill(t, "disk", shadow, 3, 2)
	p.store.down = false
	if err := p.a.device("disk").happen(t.Context(), right.Due{}); err != nil {
		t.Fatal(err)
	}
	p.a.fill(t, "disk", shadow, 3, 3)
	p.a.flush(t, "disk")
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", shadow)
	if a := p.a.device("disk"); a != nil && a.vol != nil && a.vol.WriteAt(t.Context(), make([]byte, 512), 0, true) == nil {
		t.Error("a flush was acknowledged after the takeover")
	}
}

// TestDiskThatIsOlderThanItsTails: a disk that lacks what the origin has acknowledged flushes
// of is an older copy, though the record says nothing of them yet.
func TestDiskThatIsOlderThanItsTails(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: catalog.PolicyOrigin})
	p.a.fill(t, "disk", shadow, 3, 1)
	p.a.flush(t, "disk")
	older := filepath.Join(t.TempDir(), "older")
	if err := os.CopyFS(older, os.DirFS(p.a.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	p.a.fill(t, "disk", shadow, 3, 2)
	p.a.flush(t, "disk")
	p.a.stop(t)
	if err := errors.Join(os.RemoveAll(p.a.cfg.Dir), os.CopyFS(p.a.cfg.Dir, os.DirFS(older))); err != nil {
		t.Fatal(err)
	}
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.openAll(t.Context())
	if a := p.a.device("disk"); a != nil && !errors.Is(a.err, content.ErrFenced) {
		t.Errorf("it is served: %v", a.err)
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", shadow)
}

// TestOlderDiskThatWentOn: an older copy that was served without the origin, until it had as many
// entries as it lacks, is found out by where it began; and what it has since becomes no part of
// the volume.
func TestOlderDiskThatWentOn(t *testing.T) {
	for _, policy := range []string{catalog.PolicyLocal, catalog.PolicyOrigin} {
		for starts := 1; starts <= 3; starts++ {
			t.Run(fmt.Sprintf("%s, %d starts", policy, starts), func(t *testing.T) { olderDiskGoesOn(t, policy, starts, false) })
		}
		t.Run(policy+", a start with the origin after one without", func(t *testing.T) { olderDiskGoesOn(t, policy, 1, true) })
	}
}

func olderDiskGoesOn(t *testing.T, policy string, starts int, anew bool) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: policy})
	p.a.fill(t, "disk", shadow, 3, 1)
	p.a.flush(t, "disk")
	alone, older := bytes.Clone(shadow), filepath.Join(t.TempDir(), "older")
	if err := os.CopyFS(older, os.DirFS(p.a.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	p.a.fill(t, "disk", shadow, 3, 2)
	p.a.flush(t, "disk")
	if policy == catalog.PolicyLocal {
		if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
			t.Fatal(err)
		}
	}
	p.a.stop(t)
	if err := errors.Join(os.RemoveAll(p.a.cfg.Dir), os.CopyFS(p.a.cfg.Dir, os.DirFS(older))); err != nil {
		t.Fatal(err)
	}
	p.store.down = true
	for i := range starts {
		p.a = p.a.again(t)
		p.join(p.a)
		p.a.openAll(t.Context())
		p.a.fill(t, "disk", alone, 3, uint64(3+i))
	}
	p.store.down = false
	if anew {
		p.a = p.a.again(t)
		p.join(p.a)
		p.a.openAll(t.Context())
		if a := p.a.device("disk"); a != nil && !errors.Is(a.err, content.ErrFenced) {
			t.Errorf("it is served: %v", a.err)
		}
	} else if err := p.a.device("disk").happen(t.Context(), right.Due{}); !errors.Is(err, content.ErrFenced) {
		t.Errorf("it is the latest: %v", err)
	} else if p.a.device("disk").front.Flush(t.Context()) == nil {
		t.Error("a flush of what follows an older copy was acknowledged")
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", shadow)
	p.a.look(t)
	if !bytes.Equal(p.a.exported(t, "snapshot:disk@e1-orphan"), alone) {
		t.Error("what it has acknowledged alone is not in the orphan")
	}
}

// TestRollbackToWhatIsHereAlone is cut short by a crash, and completed by a later start,
// after one that failed.
func TestRollbackToWhatIsHereAlone(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 10, 1)
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	p.a.fill(t, "disk", bytes.Clone(shadow), 10, 2)
	if err := p.a.device("disk").revise(t.Context(), func(body *catalog.Volume) error { body.Rolling = 1; return nil }); err != nil {
		t.Fatal(err)
	}
	p.a = p.a.again(t)
	p.join(p.a)
	p.store.down = true
	p.a.openAll(t.Context())
	if a := p.a.device("disk"); a.err == nil {
		t.Fatal("it was rolled back to a snapshot of which nothing can be read")
	}
	p.store.down = false
	p.a.now = p.a.now.Add(tryAfterMax)
	p.a.serveLater(t.Context(), "disk")
	if a := p.a.device("disk"); a.err != nil {
		t.Fatal(a.err)
	}
	p.a.is(t, "disk", shadow)
}

// racing is a registry that does something before the next commit of a record of a kind.
type racing struct {
	*store
	kind content.Kind
	do   func()
}

func (d *racing) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	if do := d.do; do != nil && ch.Kind == d.kind {
		d.do = nil
		do()
	}
	return d.store.Commit(ctx, ch)
}

// TestSnapshotBesideAFold: a fold that begins while a snapshot has a place, and its record
// does not say so yet, makes that durable as well.
func TestSnapshotBesideAFold(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 10, 1)
	want := bytes.Clone(shadow)
	a, folded := p.a.device("disk"), make(chan error, 1)
	p.a.cfg.Registry = &racing{store: p.store, kind: content.KindVolume, do: func() {
		p.a.fill(t, "disk", shadow, 10, 2)
		go func() { folded <- a.folds.Run(t.Context(), fold.Safe) }()
		for a.placing.TryLock() { // else the fold waits for it
			a.placing.Unlock()
			for x := range p.shelf.bucket.List(t.Context(), string(content.KeyJournals), "") {
				if x != (bucket.Info{}) {
					return
				}
			}
		}
	}}
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	if err := <-folded; err != nil {
		t.Fatal(err)
	}
	if err := a.folds.Run(t.Context(), fold.Chunks); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.b.exported(t, "snapshot:disk@1"), want) {
		t.Error("it has other bytes")
	}
}
