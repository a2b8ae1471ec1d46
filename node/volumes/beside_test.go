package volumes

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// TestForkOfASnapshotBesideAFold: a snapshot whose place came while a fold made the root that
// is under it by now begins a fork with all that it was.
func TestForkOfASnapshotBesideAFold(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 10, 1)
	var was []byte
	p.a.cfg.At = func(step string) {
		if step == "fold "+string(fold.StepPacked) && was == nil {
			p.a.fill(t, "disk", shadow, 3, 2)
			was = bytes.Clone(shadow)
			if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
				t.Error(err)
			}
			p.a.fill(t, "disk", shadow, 3, 3)
		}
	}
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Chunks); err != nil {
		t.Fatal(err)
	}
	p.a.put(t, "fork", Spec{From: refOf(t, "snapshot:disk@1")})
	p.a.is(t, "fork", was)
}

// TestForkOfAnothersSnapshot: who has not given up yet what another has taken does not read that
// one's snapshots from its own journal, though that has a place like theirs.
func TestForkOfAnothersSnapshot(t *testing.T) {
	for _, knows := range []bool{false, true} {
		p := newPair(t)
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", make([]byte, testSize), 5, 1)
		if _, err := p.a.device("disk").folds.Seal(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.b.put(t, "disk", Spec{Takeover: true})
		shadow := make([]byte, testSize)
		p.b.fill(t, "disk", shadow, 5, 2)
		if _, err := p.b.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: "durable"}); err != nil {
			t.Fatal(err)
		}
		if knows {
			_ = p.a.device("disk").happen(t.Context(), right.Due{})
		}
		p.a.put(t, "fork", Spec{From: refOf(t, "snapshot:disk@1")})
		p.a.is(t, "fork", shadow)
	}
}

// taken has the other node take a volume, write other things to it, and bring them to the
// bucket; this one has seen its record since, and has not given the volume up.
func (p *pair) taken(t *testing.T, write func()) {
	t.Helper()
	p.b.put(t, "disk", Spec{Takeover: true})
	write()
	if err := p.b.device("disk").folds.Run(t.Context(), fold.Chunks); err != nil {
		t.Fatal(err)
	}
	_ = p.a.device("disk").happen(t.Context(), right.Due{}) // it says that it is fenced
}

// TestImageOfASnapshotOfWhoHasLost: an image of a snapshot that is on this disk alone has nothing
// of what another, who has taken the volume since, has written up to a place like one here.
func TestImageOfASnapshotOfWhoHasLost(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	shadow := make([]byte, testSize)
	p.a.fill(t, "disk", shadow, 5, 1)
	if _, err := p.a.device("disk").folds.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	copy(shadow, bytes.Repeat([]byte{7}, 4096))
	if err := p.a.device("disk").vol.WriteAt(t.Context(), shadow[:4096], 0, false); err != nil {
		t.Fatal(err)
	}
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	p.taken(t, func() { p.b.fill(t, "disk", make([]byte, testSize), 5, 2) })
	p.a.cfg.Publish = func(_ context.Context, _ string, body catalog.Image, _ bool) error {
		m, err := p.a.bucket().Open(t.Context(), catalog.Snapshot{Size: testSize, Folded: catalog.Folded{Head: &body.Head}})
		if err != nil {
			return err
		}
		got := make([]byte, testSize)
		if err := errors.Join(m.Read(t.Context(), got, 0), m.Close()); err != nil || !bytes.Equal(got, shadow) {
			t.Errorf("the image has other bytes: %v", err)
		}
		return nil
	}
	if err := p.a.Promote(t.Context(), refOf(t, "snapshot:disk@1"), terms.PromoteSpec{Image: "it"}, nil); err != nil && !errors.Is(err, content.ErrUnavailable) {
		t.Error(err)
	}
}

// TestChangesOfWhoHasLost: what is read here still, and another's by now, is compared as it is here.
func TestChangesOfWhoHasLost(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", make([]byte, testSize), 5, 1)
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Chunks); err != nil {
		t.Fatal(err)
	}
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: terms.Durable}); err != nil {
		t.Fatal(err)
	}
	was, now := make([]byte, 4096), bytes.Repeat([]byte{7}, 4096)
	if err := p.a.device("disk").vol.ReadAt(t.Context(), was, 8192); err != nil {
		t.Fatal(err)
	}
	if err := p.a.device("disk").vol.WriteAt(t.Context(), now, 8192, false); err != nil {
		t.Fatal(err)
	}
	p.store.down = true
	if _, err := p.a.Detach(t.Context(), "disk", true); err != nil {
		t.Fatal(err)
	}
	p.store.down = false
	p.a.put(t, "disk", Spec{ReadOnly: true})
	p.taken(t, func() {
		if err := p.b.device("disk").vol.WriteAt(t.Context(), was, 8192, false); err != nil {
			t.Fatal(err)
		}
	})
	if st := p.a.device("disk"); st.right.Stage != right.Lost {
		t.Errorf("it is %s", st.right.Stage)
	}
	p.a.differs(t)
}

// TestReaderIsCompared: what a reader has is compared with a snapshot, where a part of it is in a
// journal too.
func TestReaderIsCompared(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.folded(t, make([]byte, testSize), 1, fold.Chunks)
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: terms.Durable}); err != nil {
		t.Fatal(err)
	}
	if err := p.a.device("disk").vol.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 4096), 8192, false); err != nil {
		t.Fatal(err)
	}
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
		t.Fatal(err)
	}
	p.b.put(t, "disk", Spec{ReadOnly: true})
	p.b.differs(t)
}

// differs fails unless the volume differs from its first snapshot in one range alone.
func (w *world) differs(t *testing.T) {
	t.Helper()
	past := w.past(w.device("disk"))
	var found []blockdev.Range
	for x, err := range past.Changes(t.Context(), 1, blockdev.Range{Length: testSize}) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, x)
	}
	if !slices.Equal(found, []blockdev.Range{{Offset: 8192, Length: 4096}}) {
		t.Errorf("it says that %v differ", found)
	}
	if err := past.Close(); err != nil {
		t.Error(err)
	}
}
