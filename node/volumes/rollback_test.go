package volumes

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// enters reports whether a client that does not wait gets in.
func (w *world) enters(name string) bool {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, leave, err := exports{w.Volumes}.Lookup(ended, name)
	if err == nil {
		leave()
	}
	return err == nil
}

// rolled is a volume whose flushes go to the origin, with a snapshot that is here alone;
// during is called in the middle of each flush of it.
func rolled(t *testing.T) (p *pair, was []byte, during *func() error) {
	p = newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: catalog.PolicyOrigin})
	p.a.fill(t, "disk", shadow, 10, 1)
	p.a.flush(t, "disk")
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	p.a.fill(t, "disk", bytes.Clone(shadow), 10, 2)
	p.a.flush(t, "disk")
	do := func() error { return nil }
	p.a.cfg.Origin = func() (bucket.Bucket, error) { return p.shelf.bucket, do() }
	return p, shadow, &do
}

// TestNobodyEntersARollback: a client that comes while a volume is rolled back gets in when
// that is done; what it is in between is neither read, nor a snapshot or a fork.
func TestNobodyEntersARollback(t *testing.T) {
	p, was, during := rolled(t)
	seen := 0
	*during = func() error {
		if seen++; seen > 1 {
			return nil
		}
		if p.a.enters("disk") {
			t.Error("a client got in")
		}
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); !errors.Is(err, content.ErrConflict) {
			t.Errorf("a snapshot: %v", err)
		}
		if _, err := p.a.parentOf(t.Context(), refOf(t, "volume:disk")); !errors.Is(err, content.ErrConflict) {
			t.Errorf("a fork: %v", err)
		}
		if _, err := p.a.moment(t.Context(), refOf(t, "volume:disk")); !errors.Is(err, content.ErrConflict) {
			t.Errorf("an export: %v", err)
		}
		return nil
	}
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); err != nil || seen == 0 {
		t.Fatal(err, seen)
	}
	p.a.is(t, "disk", was)
	if !p.a.enters("disk") {
		t.Error("nobody gets in any more")
	}
	p.a.put(t, "fork", Spec{From: refOf(t, "volume:disk")})
	p.a.is(t, "fork", was)
}

// TestRollbackThatFails: where it was begun, nobody reads the volume before it is completed;
// where it was not, all is as before.
func TestRollbackThatFails(t *testing.T) {
	p, was, during := rolled(t)
	p.store.down = true
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); !errors.Is(err, content.ErrUnavailable) || !p.a.enters("disk") {
		t.Errorf("without its record: %v", err)
	}
	p.store.down = false
	*during = func() error { return content.ErrUnavailable }
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); err == nil {
		t.Fatal("it could not be flushed")
	}
	if p.a.enters("disk") || p.a.state(t, "disk") != terms.StateFailed {
		t.Error("what is half rolled back is served")
	}
	*during = func() error { return nil }
	p.a.now = p.a.now.Add(tryAfterMax)
	p.a.serveLater(t.Context(), "disk")
	if p.a.state(t, "disk") != terms.StateAttached || !p.a.enters("disk") {
		t.Fatalf("it is %s", p.a.state(t, "disk"))
	}
	p.a.is(t, "disk", was)
}

// TestRollbackOfWhatIsInUse changes nothing.
func TestRollbackOfWhatIsInUse(t *testing.T) {
	p, _, _ := rolled(t)
	_, leave, err := exports{p.a.Volumes}.Lookup(t.Context(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); !errors.Is(err, content.InUse) {
		t.Errorf("with a client: %v", err)
	}
	if !p.a.enters("disk") {
		t.Error("nobody gets in any more")
	}
	if _, err := p.a.Detach(t.Context(), "disk", false); !errors.Is(err, content.InUse) {
		t.Errorf("detached: %v", err)
	}
	leave()
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); err != nil {
		t.Error(err)
	}
}
