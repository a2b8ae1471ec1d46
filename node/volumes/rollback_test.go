package volumes

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// newRolled has a volume with a snapshot, and returns what that is, and what is now.
func newRolled(t *testing.T, p *pair) (was, now []byte) {
	was = imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	p.a.fill(t, "disk", was, 10, 1)
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	now = bytes.Clone(was)
	p.a.fill(t, "disk", now, 10, 2)
	return was, now
}

// halfRolled leaves the volume as a crash in the middle of a rollback does, with what that
// has written in the bucket.
func (p *pair) halfRolled(t *testing.T, was []byte) {
	t.Helper()
	a := p.a.device("disk")
	if err := p.a.Settle(t.Context(), "disk@1"); err != nil {
		t.Fatal(err)
	}
	if err := a.rollTo(t.Context(), "disk@1", 1); err != nil {
		t.Fatal(err)
	}
	if err := a.vol.WriteAt(t.Context(), was[:testSize/2], 0, true); err != nil {
		t.Fatal(err)
	}
	if err := a.folds.Run(t.Context(), fold.Safe); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotOfARollbackStays: while a volume is being rolled back to it nobody removes it,
// here or elsewhere; the next start completes that, and then it may go.
func TestSnapshotOfARollbackStays(t *testing.T) {
	p := newPair(t)
	was, _ := newRolled(t, p)
	p.halfRolled(t, was)
	for _, w := range []*world{p.a, p.b} {
		if err := w.RemoveSnapshot(t.Context(), "disk@1"); !errors.Is(err, content.ErrConflict) {
			t.Errorf("removed while it is needed: %v", err)
		}
	}
	p.a = p.a.again(t)
	p.join(p.a)
	if err := p.a.RemoveSnapshot(t.Context(), "disk@1"); !errors.Is(err, content.ErrConflict) {
		t.Errorf("removed before the start has completed it: %v", err)
	}
	p.a.openAll(t.Context())
	p.a.is(t, "disk", was)
	if err := p.b.RemoveSnapshot(t.Context(), "disk@1"); err != nil {
		t.Error(err)
	}
	p.a.is(t, "disk", was)
}

// TestTakeoverOfARollback: whoever takes the volume over completes it before anybody reads.
func TestTakeoverOfARollback(t *testing.T) {
	p := newPair(t)
	was, _ := newRolled(t, p)
	p.halfRolled(t, was)
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", was)
	if body, err := p.store.body("disk"); err != nil || body.Rolling != 0 {
		t.Errorf("%+v, %v", body, err)
	}
}

// TestHalfARollbackIsNeverTaken: the bucket had half of one when a start completed it; whoever
// takes the volume over then has the whole, or what it was before.
func TestHalfARollbackIsNeverTaken(t *testing.T) {
	p := newPair(t)
	was, _ := newRolled(t, p)
	p.halfRolled(t, was)
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.openAll(t.Context())
	p.a.is(t, "disk", was)
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", was)
}

// TestRollbackThatFails in its middle: nobody reads a mixture; what is tried again completes
// it, and what the guest writes from then on stays.
func TestRollbackThatFails(t *testing.T) {
	p := newPair(t)
	away := false
	p.a.cfg.Origin = func() (bucket.Bucket, error) {
		if away {
			return nil, content.ErrUnavailable
		}
		return p.shelf.bucket, nil
	}
	was, _ := newRolled(t, p)
	if err := p.a.Settle(t.Context(), "disk@1"); err != nil {
		t.Fatal(err)
	}
	away = true
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); err == nil {
		t.Fatal("it was rolled back to what can't be read")
	}
	if _, _, err := (exports{p.a.Volumes}).Lookup(t.Context(), "disk"); err == nil || p.a.state(t, "disk") != terms.StateFailed {
		t.Errorf("it is served half rolled back: %v", err)
	}
	away = false
	p.a.now = p.a.now.Add(tryAfterMax)
	p.a.serveLater(t.Context(), "disk")
	p.a.is(t, "disk", was)
	p.a.fill(t, "disk", was, 3, 9)
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.openAll(t.Context())
	p.a.is(t, "disk", was)
}

// TestRollbackBesideItsRemoval: of the two one is told that the other was first, whenever
// they meet.
func TestRollbackBesideItsRemoval(t *testing.T) {
	for _, kind := range []content.Kind{content.KindVolume, content.KindSnapshot} {
		p := newPair(t)
		was, now := newRolled(t, p)
		if err := p.a.Settle(t.Context(), "disk@1"); err != nil {
			t.Fatal(err)
		}
		var removed error
		x := &racing{store: p.store, kind: kind, do: func() { removed = p.b.RemoveSnapshot(t.Context(), "disk@1") }}
		p.a.cfg.Registry = x
		_, err := p.a.Rollback(t.Context(), "disk", "disk@1")
		switch {
		case removed == nil && errors.Is(err, content.ErrNotFound):
			p.a.is(t, "disk", now)
		case errors.Is(removed, content.ErrConflict) && err == nil:
			p.a.is(t, "disk", was)
		default:
			t.Errorf("%s: rolled back: %v; removed: %v", kind, err, removed)
		}
		if body, err := p.store.body("disk"); err != nil || body.Rolling != 0 {
			t.Errorf("%+v, %v", body, err)
		}
	}
	p := newPair(t) // who removes it has looked at the volume already
	was, _ := newRolled(t, p)
	var rolled error
	p.b.cfg.Registry = &deleting{p.store, func() { _, rolled = p.a.Rollback(t.Context(), "disk", "disk@1") }}
	if err := p.b.RemoveSnapshot(t.Context(), "disk@1"); err != nil || rolled != nil {
		t.Errorf("removed: %v; rolled back: %v", err, rolled)
	}
	p.a.is(t, "disk", was)
}

// deleting is a registry in which something happens before the next deletion.
type deleting struct {
	*store
	do func()
}

func (d *deleting) Delete(ctx context.Context, base catalog.Record) error {
	if do := d.do; do != nil {
		d.do = nil
		do()
	}
	return d.store.Delete(ctx, base)
}

// TestRollbackWhoseReplyIsLost: the record says that the volume is being rolled back, and who
// has it does not hear of that before the origin is away: nobody is served what it was, whose
// writes the rollback would take away once it is known.
func TestRollbackWhoseReplyIsLost(t *testing.T) {
	p := newPair(t)
	was, now := newRolled(t, p)
	if err := p.a.Settle(t.Context(), "disk@1"); err != nil {
		t.Fatal(err)
	}
	p.a.cfg.Registry = &rollLost{store: p.store}
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); err == nil {
		t.Fatal("it was rolled back by a record that nobody knows of")
	}
	want := was
	for range 2 { // in this process, and in the next one
		if d := p.a.device("disk"); d != nil && d.err == nil {
			p.a.fill(t, "disk", now, 10, 3) // acknowledged
			want = now
		}
		p.a = p.a.again(t)
		p.join(p.a)
		p.a.openAll(t.Context())
	}
	p.store.down = false
	p.a.now = p.a.now.Add(tryAfterMax)
	p.a.serveLater(t.Context(), "disk")
	p.a.is(t, "disk", want)
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.openAll(t.Context())
	p.a.is(t, "disk", want)
}

// rollLost is an origin that is away once it has a record of a volume that is rolled back.
type rollLost struct{ *store }

func (u *rollLost) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	r, err := u.store.Commit(ctx, ch)
	if v, bad := catalog.DecodeVolume(content.NewCodec(), ch.Body); err == nil && ch.Kind == content.KindVolume && bad == nil && v.Rolling != 0 {
		u.down, err = true, bucket.ErrUnknown
	}
	return r, err
}

// TestHalfARollbackIsNeverRead: what the bucket has of a volume that is being rolled back was
// never the volume, and nothing is made of it.
func TestHalfARollbackIsNeverRead(t *testing.T) {
	p := newPair(t)
	was, now := newRolled(t, p)
	p.halfRolled(t, was)
	if _, _, err := p.b.Put(t.Context(), "fork", Spec{From: refOf(t, "volume:disk?at=folded"), Transport: terms.NBD}); err == nil {
		got := make([]byte, testSize)
		if err := p.b.device("fork").vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, was) && !bytes.Equal(got, now) {
			t.Errorf("the fork is a mixture: %v", err)
		}
	} else if !errors.Is(err, content.ErrUnavailable) {
		t.Error(err)
	}
	if m, err := p.b.Volumes.moment(t.Context(), refOf(t, "volume:disk?at=folded")); err == nil {
		got := make([]byte, testSize)
		if err := errors.Join(m.Read(t.Context(), got, 0), m.Close()); err != nil || !bytes.Equal(got, was) && !bytes.Equal(got, now) {
			t.Errorf("what is exported is a mixture: %v", err)
		}
	} else if !errors.Is(err, content.ErrUnavailable) {
		t.Error(err)
	}
}

// TestReaderOfARollback: who asked for a volume to read while it was rolled back reads it
// afterwards, also where that changed nothing.
func TestReaderOfARollback(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 5, 1)
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: terms.Durable}); err != nil {
		t.Fatal(err)
	}
	if err := p.a.device("disk").rollTo(t.Context(), "disk@1", 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.b.Put(t.Context(), "disk", Spec{ReadOnly: true, Transport: terms.NBD}); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("half a rollback is read: %v", err)
	}
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.openAll(t.Context())
	p.b.put(t, "disk", Spec{ReadOnly: true})
	p.b.is(t, "disk", shadow)
}

// TestRollbackCutShortBesideARemoval: a node that dies between its two records, of which another
// removes the second, has its volume as it was.
func TestRollbackCutShortBesideARemoval(t *testing.T) {
	p := newPair(t)
	_, now := newRolled(t, p)
	if err := p.a.Settle(t.Context(), "disk@1"); err != nil {
		t.Fatal(err)
	}
	p.b.cfg.Registry = &deleting{p.store, func() {
		if err := p.a.device("disk").revise(t.Context(), func(body *catalog.Volume) error { body.Rolling = 1; return nil }); err != nil {
			t.Error(err)
		}
	}}
	if err := p.b.RemoveSnapshot(t.Context(), "disk@1"); err != nil {
		t.Fatal(err)
	}
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.openAll(t.Context())
	if state := p.a.state(t, "disk"); state != terms.StateAttached {
		t.Fatalf("it is %s", state)
	}
	p.a.is(t, "disk", now)
}
