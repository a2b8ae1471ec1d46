package volumes

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/volumes/holders/quorum"
)

// compacted is a volume whose two holders can't go on with its journal, as that was compacted
// while no flush asked for them; its snapshot @1 has 1 in its first sectors.
func compacted(t *testing.T, m *member) *attached {
	put := func(spec Spec) *attached {
		if _, _, err := m.Put(t.Context(), "web", spec); err != nil {
			t.Fatal(err)
		}
		return m.device("web")
	}
	write := func(at int, word uint64, fua bool) {
		if err := m.device("web").front.WriteAt(t.Context(), bytesOf(4, word), int64(at)*modelSector, fua); err != nil {
			t.Fatal(err)
		}
	}
	a := put(Spec{Size: modelSize, Durability: "farm:2"})
	write(0, 1, true)
	if _, err := m.Snapshot(t.Context(), "web", SnapshotSpec{Wait: "durable"}); err != nil {
		t.Fatal(err)
	}
	write(0, 2, true)
	put(Spec{Durability: "local"})
	write(0, 2, true) // nobody follows from here on
	for i := range 24 {
		write(i%4*8, uint64(3+i), false)
		at, err := a.vol.Seal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a.vol.Release(at)
	}
	return put(Spec{Durability: "farm:2"})
}

// TestRollbackBeforeItsHoldersGoOn: holders that can't go on keep no rollback from being
// completed: they begin where the bucket ends.
func TestRollbackBeforeItsHoldersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		farm := newFarm(t)
		defer farm.close()
		m := farm.nodes()[0]
		compacted(t, m)
		if _, err := m.Rollback(t.Context(), "web", "web@1"); err != nil {
			t.Fatal(err)
		}
		found, err := readDisk(modelSize, func(p []byte, off int64) error { return m.device("web").front.ReadAt(t.Context(), p, off) })
		if err != nil || len(found) != 4 || found[0] != 1 {
			t.Errorf("it is %v, %v", found, err)
		}
	})
}

// TestFlushBeforeItsHoldersGoOn: nor do they have a flush fail: the volume is folded then.
func TestFlushBeforeItsHoldersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		farm := newFarm(t)
		defer farm.close()
		m := farm.nodes()[0]
		a := compacted(t, m)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.keepFolding(ctx) }()
		if err := a.front.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestFlushFollowsThePolicy: a flush that waits for holders who can't be reached is answered
// once the policy asks for none, and goes on alone once that is allowed.
func TestFlushFollowsThePolicy(t *testing.T) {
	for _, change := range []Spec{{Durability: "local"}, {Degrade: "local"}} {
		synctest.Test(t, func(t *testing.T) {
			farm := newFarm(t)
			defer farm.close()
			m := farm.nodes()[0]
			if _, _, err := m.Put(t.Context(), "web", Spec{Size: modelSize, Durability: "farm:2"}); err != nil {
				t.Fatal(err)
			}
			m.cable.offMembers = true
			begun, done := time.Now(), make(chan error, 2)
			go func() { done <- m.device("web").front.WriteAt(t.Context(), bytesOf(4, 1), 0, true) }()
			synctest.Wait()
			go func() {
				_, _, err := m.Put(t.Context(), "web", change)
				done <- err
			}()
			if err := errors.Join(<-done, <-done); err != nil || time.Since(begun) > quorum.DegradeAfter+5*time.Second {
				t.Errorf("%+v: %v after %s", change, err, time.Since(begun))
			}
		})
	}
}
