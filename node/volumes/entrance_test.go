package volumes

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/doors"
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

// TestNobodyEntersARollback: who comes while a volume is rolled back gets in when that is
// done; what it is in between is neither read, nor a snapshot.
func TestNobodyEntersARollback(t *testing.T) {
	p := newPair(t)
	was, _ := newRolled(t, p)
	seen := 0
	p.a.cfg.Origin = func() (bucket.Bucket, error) {
		if a := p.a.device("disk"); a.opening != nil {
			seen++
			if p.a.enters("disk") {
				t.Error("a client got in")
			}
			if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err == nil {
				t.Error("a snapshot was made")
			}
		}
		return p.shelf.bucket, nil
	}
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); err != nil || seen == 0 {
		t.Fatal(err, seen)
	}
	p.a.is(t, "disk", was)
	if !p.a.enters("disk") {
		t.Error("nobody gets in any more")
	}
}

// TestRollbackOfWhatIsInUse changes nothing, nor does a detach.
func TestRollbackOfWhatIsInUse(t *testing.T) {
	p := newPair(t)
	_, now := newRolled(t, p)
	_, leave, err := exports{p.a.Volumes}.Lookup(t.Context(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); !errors.Is(err, content.InUse) {
		t.Errorf("with a client: %v", err)
	}
	if _, err := p.a.Detach(t.Context(), "disk", false); !errors.Is(err, content.InUse) {
		t.Errorf("detached: %v", err)
	}
	if !p.a.enters("disk") {
		t.Error("nobody gets in any more")
	}
	p.a.is(t, "disk", now)
	leave()
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@1"); err != nil {
		t.Error(err)
	}
}

// TestShutEntrance: nobody comes in between the look whether somebody is there and the end of
// what must not be seen.
func TestShutEntrance(t *testing.T) {
	var e doors.Entrance
	leave, _ := e.Enter()
	if _, err := e.Shut(t.Context(), false); !errors.Is(err, content.InUse) {
		t.Fatal(err)
	}
	forced, err := e.Shut(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if in, opened := e.Enter(); in != nil || opened == nil {
		t.Error("somebody came in")
	}
	within, err := e.Shut(t.Context(), false) // by who has shut it
	if err != nil {
		t.Fatal(err)
	}
	within()
	_, opened := e.Enter()
	forced()
	<-opened
	leave()
	e.Wait()
	if in, _ := e.Enter(); in == nil {
		t.Error("it is shut for good")
	}
}

// TestDetachOfARenamed: those who opened a volume before its name was taken are ended by the
// name that it has.
func TestDetachOfARenamed(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	w.create(t, "disk")
	w.openExport(t, "disk")
	w.origin.record = &catalog.Volume{ID: content.VolumeID{9}, Size: 512, Policy: catalog.PolicyLocal, State: catalog.Attached}
	if err := w.commitLater(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := w.Detach(ctx, "disk.node", true)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("it waits for a client for ever")
	}
}
