package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
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
	mu    sync.Mutex // guards what follows
	do    func()
	fail  bool // the next one is not stored
}

func (b *busy) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if strings.HasPrefix(key, string(b.space)) {
		b.mu.Lock()
		do, fail := b.do, b.fail
		b.do, b.fail = nil, false
		b.mu.Unlock()
		if do != nil {
			do()
		}
		if fail {
			return bucket.Info{}, content.ErrForbidden
		}
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
			p.a.openAll(t.Context())
		}
		p.a.now = p.a.now.Add(tryAfterMax)
		a := p.a.device("disk")
		if !a.folds.IsDue(new(fold.Pace), false) {
			t.Fatalf("restart %t: a snapshot waits, and nothing is due", restart)
		}
		if err := a.folds.Run(t.Context(), fold.Safe); err != nil {
			t.Fatal(err)
		}
		if view, err := p.a.FindSnapshot(t.Context(), "disk@1"); err != nil || !view.Durable || a.folds.IsDue(new(fold.Pace), false) {
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

// TestVolumesShareTheirPacks: many small volumes that are folded together, one of which is
// another's by now, and a pack that can't be stored: all others are in the bucket.
func TestVolumesShareTheirPacks(t *testing.T) {
	const volumes = 8
	p := newPair(t)
	at := &busy{Bucket: p.shelf.bucket, space: content.KeyPacks}
	p.a.cfg.Origin = func() (bucket.Bucket, error) { return at, nil }
	shadows := map[string][]byte{}
	for i := range uint64(volumes) {
		name := fmt.Sprintf("disk%d", i)
		shadows[name] = make([]byte, testSize)
		p.a.put(t, name, Spec{Size: testSize})
		p.a.fill(t, name, shadows[name], 5, i)
	}
	before := len(p.shelf.bucket.Keys("packs/"))
	p.b.put(t, "disk0", Spec{Takeover: true})
	for round := range uint64(3) {
		at.mu.Lock()
		at.fail = round == 1
		at.mu.Unlock()
		var folds sync.WaitGroup
		for name, shadow := range shadows {
			p.a.fill(t, name, shadow, 3, round*100)
			folds.Go(func() {
				if err := p.a.device(name).folds.Run(t.Context(), fold.Chunks); (err != nil) != (name == "disk0") {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		folds.Wait()
		for name, shadow := range shadows {
			if name != "disk0" && !bytes.Equal(p.b.exported(t, "volume:"+name+"?at=folded"), shadow) {
				t.Errorf("round %d: %s has other bytes in the bucket", round, name)
			}
		}
	}
	t.Logf("%d packs for %d folds", len(p.shelf.bucket.Keys("packs/"))-before, 3*volumes)
}
