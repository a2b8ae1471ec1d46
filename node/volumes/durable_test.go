package volumes

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// busy is a bucket that does something before the next object of a space is stored.
type busy struct {
	bucket.Bucket
	space content.KeySpace
	do    func()
}

func (b *busy) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if do := b.do; do != nil && strings.HasPrefix(key, string(b.space)) {
		b.do = nil
		do()
	}
	return b.Bucket.Put(ctx, key, body, cond)
}

// TestSnapshotWhereAFoldEnds: one that names the very place that a fold brings the record to
// is durable once the record says so, though nothing is written from then on.
func TestSnapshotWhereAFoldEnds(t *testing.T) {
	for space, want := range map[content.KeySpace]fold.Want{content.KeyJournals: fold.Safe, content.KeyPacks: fold.Chunks} {
		p := newPair(t)
		at := &busy{Bucket: p.shelf.bucket, space: space}
		p.a.cfg.Origin = func() (bucket.Bucket, error) { return at, nil }
		shadow := make([]byte, testSize)
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", shadow, 10, 1)
		at.do = func() {
			if view, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil || view.Durable {
				t.Errorf("%+v, %v", view, err)
			}
		}
		if err := p.a.device("disk").folds.Run(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if view, err := p.a.FindSnapshot(t.Context(), "disk@1"); err != nil || !view.Durable {
			t.Errorf("%s: the record has all of it, and it is %+v, %v", space, view, err)
			continue
		}
		if !bytes.Equal(p.b.exported(t, "snapshot:disk@1"), shadow) {
			t.Errorf("%s: it has other bytes", space)
		}
	}
}

// TestFoldBeforeASnapshotHasARecord: a fold that comes between the place of a snapshot and its
// record does not give it up.
func TestFoldBeforeASnapshotHasARecord(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 10, 1)
	a, folded := p.a.device("disk"), make(chan error, 1)
	p.a.cfg.Registry = &racing{store: p.store, kind: content.KindSnapshot, do: func() {
		go func() { folded <- a.folds.Run(t.Context(), fold.Safe) }()
		if a.placing.TryLock() { // else the fold waits for it
			a.placing.Unlock()
			folded <- <-folded
		}
	}}
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	if err := <-folded; err != nil {
		t.Fatal(err)
	}
	if view, err := p.a.FindSnapshot(t.Context(), "disk@1"); err != nil || !view.Durable {
		t.Errorf("%+v, %v", view, err)
	}
}

// TestSnapshotOfAFoldThatFails at its end, after the record: what is durable by then is made
// so by the next fold, which is due though nothing was written since; after a start, too.
func TestSnapshotOfAFoldThatFails(t *testing.T) {
	for _, restart := range []bool{false, true} {
		p := newPair(t)
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", make([]byte, testSize), 10, 1)
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
		commits := 0
		p.store.fault = func() (before, after bool) { commits++; return commits == 2, false } // the record, then the snapshot's
		if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err == nil || commits != 2 {
			t.Fatalf("%v after %d commits", err, commits)
		}
		p.store.fault = nil
		if restart {
			p.a = p.a.again(t)
			p.join(p.a)
			if err := p.a.openAll(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		p.a.now = p.a.now.Add(tryAfterMax)
		a := p.a.device("disk")
		if !a.folds.IsDue() {
			t.Fatalf("restart %t: a snapshot waits, and nothing is due", restart)
		}
		if err := a.folds.Run(t.Context(), fold.Safe); err != nil {
			t.Fatal(err)
		}
		if view, err := p.a.FindSnapshot(t.Context(), "disk@1"); err != nil || !view.Durable || a.folds.IsDue() {
			t.Errorf("restart %t: %+v, %v", restart, view, err)
		}
	}
}

// TestPolicyChangesBesideAFold, to `origin`, and a snapshot waits: what is flushed from then
// on is found by who takes the volume over, whatever becomes of the fold.
func TestPolicyChangesBesideAFold(t *testing.T) {
	p := newPair(t)
	at := &busy{Bucket: p.shelf.bucket, space: content.KeyJournals}
	p.a.cfg.Origin = func() (bucket.Bucket, error) { return at, nil }
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 10, 1)
	at.do = func() {
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Error(err)
		}
		p.a.fill(t, "disk", shadow, 3, 2)
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Error(err)
		}
		p.a.put(t, "disk", Spec{Durability: catalog.PolicyOrigin})
		p.a.fill(t, "disk", shadow, 3, 3)
		p.a.flush(t, "disk")
	}
	a := p.a.device("disk")
	if err := a.folds.Run(t.Context(), fold.Safe); !errors.Is(err, content.ErrConflict) {
		t.Errorf("a fold that is behind the flushes: %v", err)
	}
	snapshots := 0
	p.store.fault = func() (before, after bool) { snapshots++; return false, snapshots == 2 } // it ends behind the place of the first
	if err := a.folds.Run(t.Context(), fold.Safe); err == nil {
		t.Error("it did not end there")
	}
	p.store.fault = nil
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", shadow)
}
