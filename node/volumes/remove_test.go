package volumes

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// TestRemoveWhereItWasReleased: a node that has released a volume to another says who holds it,
// and takes nothing away; it removes the volume when that has released it too.
func TestRemoveWhereItWasReleased(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 4, 1)
	if _, err := p.a.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	p.b.put(t, "disk", Spec{})
	p.a.cfg.Away = func(context.Context, trust.PublicKey) bool { return false }
	for _, spec := range []RemoveSpec{{}, {Force: true}, {Purge: true}} {
		err := p.a.Remove(t.Context(), "disk", spec)
		if !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), p.b.cfg.Self.String()) || strings.Contains(err.Error(), "detached") {
			t.Errorf("%+v: %v", spec, err)
		}
	}
	if view, err := p.a.Get("disk"); err != nil || view.State != terms.StateReleased {
		t.Errorf("%+v, %v", view, err)
	}
	p.b.is(t, "disk", shadow)
	if _, err := p.b.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil || p.store.has(content.KindVolume, "disk") {
		t.Errorf("once nobody has it: %v", err)
	}
	if err := p.b.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
		t.Errorf("once its name is free: %v", err)
	}
}

// TestRemoveLeavesTheOrphan: a volume that was taken over is removed where it was, and its
// orphan stays, to be forked, over a start; purged, it goes with its data, and not with
// those of a volume that has its name by now.
func TestRemoveLeavesTheOrphan(t *testing.T) {
	p := newPair(t)
	want := map[string][]byte{"stays": make([]byte, testSize), "goes": make([]byte, testSize)}
	orphans := map[string]string{}
	for name := range want {
		p.a.put(t, name, Spec{Size: testSize})
		p.a.fill(t, name, want[name], 4, 1)
		orphans[name] = p.fencedOff(t, name)
		if _, err := p.b.Snapshot(t.Context(), name, SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.a.Remove(t.Context(), "stays", RemoveSpec{}); err != nil {
		t.Fatal(err)
	}
	if err := p.a.Remove(t.Context(), "goes", RemoveSpec{Purge: true}); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		if !bytes.Equal(p.a.exported(t, orphans["stays"]), want["stays"]) {
			t.Errorf("%s: the orphan has other bytes", when)
		}
		if len(p.a.List()) > 0 {
			t.Errorf("%s: %+v are listed", when, p.a.List())
		}
	}
	check("at once")
	p.a = p.a.again(t)
	p.join(p.a)
	check("after a start")
	p.a.put(t, "fork", Spec{From: refOf(t, orphans["stays"])})
	p.a.is(t, "fork", want["stays"])
	if p.store.has(content.KindSnapshot, strings.TrimPrefix(orphans["goes"], "snapshot:")) || !p.store.has(content.KindSnapshot, "goes@1") || !p.store.has(content.KindVolume, "goes") {
		t.Error("a purge leaves the orphan, or takes what is another's")
	}
	if len(p.a.index.Orphans()) != 1 {
		t.Errorf("%d orphans are here", len(p.a.index.Orphans()))
	}
}

// TestRemoveBeforeTheOrphanHasAName: what was taken over and has no snapshot yet is not
// removed, however that is asked for, but purged.
func TestRemoveBeforeTheOrphanHasAName(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", make([]byte, testSize), 4, 1)
	p.b.put(t, "disk", Spec{Takeover: true})
	_ = p.a.device("disk").happen(t.Context(), right.Due{}) // it says that it is fenced
	p.a.giveUpLost(t.Context())
	for _, spec := range []RemoveSpec{{}, {Force: true}} {
		if err := p.a.Remove(t.Context(), "disk", spec); !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), "--purge") {
			t.Errorf("%+v: %v", spec, err)
		}
	}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Purge: true}); err != nil || len(p.a.List()) > 0 {
		t.Errorf("purged: %v, %+v", err, p.a.List())
	}
}

// TestRemoveOfWhatWasTakenUnheard: who does not know yet that another has taken a volume over
// removes nothing that it alone has.
func TestRemoveOfWhatWasTakenUnheard(t *testing.T) {
	for _, served := range []bool{true, false} {
		p := newPair(t)
		want := make([]byte, testSize)
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", want, 4, 1)
		if !served {
			p.store.down = true
			if _, err := p.a.Detach(t.Context(), "disk", false); err != nil {
				t.Fatal(err)
			}
			p.store.down = false
		}
		deaf := p.b.cfg.Call
		p.b.cfg.Call = func(context.Context, trust.PublicKey, string, []byte) ([]byte, error) {
			return nil, content.ErrUnavailable
		}
		p.b.put(t, "disk", Spec{Takeover: true})
		p.b.cfg.Call = deaf
		for range 2 {
			if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Force: true}); !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), "--purge") {
				t.Errorf("served %t: %v", served, err)
			}
		}
		p.a.look(t)
		if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
			t.Errorf("served %t, once it is a snapshot: %v", served, err)
		}
		if !bytes.Equal(p.a.exported(t, "snapshot:disk@e1-orphan"), want) {
			t.Errorf("served %t: the orphan has other bytes", served)
		}
	}
}

// TestRemoveOfWhatWasMadeUnheard: a node that never heard that its volume was made takes
// nothing of who has taken it over since.
func TestRemoveOfWhatWasMadeUnheard(t *testing.T) {
	for _, spec := range []RemoveSpec{{}, {Force: true}, {Purge: true}, {Purge: true, Force: true}} {
		p := newPair(t)
		p.store.unheard(func() { p.a.put(t, "disk", Spec{Size: testSize}) })
		p.b.put(t, "disk", Spec{Takeover: true})
		shadow := make([]byte, testSize)
		p.b.fill(t, "disk", shadow, 4, 1)
		if _, err := p.b.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
		if err := p.a.Remove(t.Context(), "disk", spec); err != nil && !errors.Is(err, content.ErrConflict) {
			t.Errorf("%+v: %v", spec, err)
		}
		if !p.store.has(content.KindVolume, "disk") || !p.store.has(content.KindSnapshot, "disk@1") {
			t.Errorf("%+v takes what is another's", spec)
		}
		p.b.is(t, "disk", shadow)
	}
}

// TestNobodyIsDialedInVain: a takeover asks nobody whether who had the volume is away, and
// what is refused asks once.
func TestNobodyIsDialedInVain(t *testing.T) {
	p := newPair(t)
	dials := 0
	p.b.cfg.Away = func(context.Context, trust.PublicKey) bool { dials++; return true }
	p.a.put(t, "disk", Spec{Size: testSize})
	if _, _, err := p.b.Put(t.Context(), "disk", Spec{Transport: terms.NBD}); !errors.Is(err, content.ErrConflict) || dials != 1 {
		t.Errorf("refused: %v, after %d dials", err, dials)
	}
	dials = 0
	if p.b.put(t, "disk", Spec{Takeover: true}); dials > 0 {
		t.Errorf("taken over after %d dials", dials)
	}
}

// TestErrorsSayTheNameOnce: whatever fails of a volume that is another's says so of it once.
func TestErrorsSayTheNameOnce(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: terms.Durable}); err != nil {
		t.Fatal(err)
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	_ = p.a.device("disk").happen(t.Context(), right.Due{}) // it says that it is fenced
	said := func(what string, err error) {
		t.Helper()
		if err == nil || strings.Count(err.Error(), `volume "disk"`) != 1 {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := p.a.SetLimits(t.Context(), "disk", Limits{IOPS: 5})
	said("limit", err)
	_, err = p.a.Resize(t.Context(), "disk", 2*testSize)
	said("resize", err)
	_, err = p.a.Snapshot(t.Context(), "disk", SnapshotSpec{})
	said("snapshot", err)
	_, _, err = p.a.Put(t.Context(), "disk", Spec{Limits: Limits{IOPS: 5}})
	said("attach", err)
	_, err = p.a.Rollback(t.Context(), "disk", "disk@1")
	said("rollback", err)
	_, err = p.b.Detach(t.Context(), "none", false)
	if err == nil || strings.Count(err.Error(), `volume "none"`) != 1 {
		t.Errorf("detach: %v", err)
	}
}

// lines are what is logged.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

// TestOneThatIsGivenUpHoldsUpNoOther: while a volume that was lost can't be closed, as
// somebody has its turn, another one that is lost is served no more.
func TestOneThatIsGivenUpHoldsUpNoOther(t *testing.T) {
	p := newPair(t)
	for _, name := range []string{"stuck", "other"} {
		p.a.put(t, name, Spec{Size: testSize})
		p.b.put(t, name, Spec{Takeover: true})
	}
	logged := make(lines, 100)
	p.a.cfg.Log = slog.New(slog.NewTextHandler(logged, nil))
	end := p.a.turn("stuck")
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- p.a.keepOwned(ctx, right.NewLooks(0, p.a.now)) }()
	stuck := p.a.device("stuck")
	_ = stuck.happen(ctx, right.Due{}) // it says that it is fenced
	for !stuck.leaving.Load() {
		runtime.Gosched()
	}
	_ = p.a.device("other").happen(ctx, right.Due{})
	for line := ""; !strings.Contains(line, "volume=other"); {
		select {
		case line = <-logged:
		case <-time.After(time.Minute): // far more than it takes
			end()
			t.Fatal("it waits for the one that is stuck")
		}
	}
	end()
	cancel()
	if err := <-kept; err != nil || p.a.state(t, "other") != terms.StateFailed || p.a.state(t, "stuck") != terms.StateFailed {
		t.Errorf("%v: %+v", err, p.a.List())
	}
}

// TestRemoveWhoseReplyIsLost: a volume whose name was freed by a removal that did not hear of
// it is no orphan: who asks again has it gone, with its snapshots where that is asked for.
func TestRemoveWhoseReplyIsLost(t *testing.T) {
	for _, purge := range []bool{false, true} {
		p := newPair(t)
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", make([]byte, testSize), 4, 1)
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
		real := p.a.cfg.Registry
		p.a.cfg.Registry = deaf{real}
		if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Purge: purge}); !errors.Is(err, content.ErrUnavailable) {
			t.Fatal(err)
		}
		p.a.cfg.Registry = real
		p.a = p.a.again(t)
		p.join(p.a)
		p.a.openAll(t.Context())
		_ = p.a.lookAtDetached(t.Context(), "disk")
		p.a.giveUpLost(t.Context())
		if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Purge: purge}); err != nil || len(p.a.List()) > 0 || len(p.a.index.Orphans()) > 0 {
			t.Errorf("purge %t: %v, %+v, %d orphans", purge, err, p.a.List(), len(p.a.index.Orphans()))
		}
		if p.store.has(content.KindSnapshot, "disk@1") == purge {
			t.Errorf("purge %t: its snapshot is there: %t", purge, !purge)
		}
	}
}

// deaf is a registry whose answers to removals are lost.
type deaf struct{ records.Registry }

func (d deaf) Delete(ctx context.Context, base catalog.Record) error {
	return errors.Join(content.ErrUnavailable, d.Registry.Delete(ctx, base))
}

// TestRemoveBeforeItIsKnownToBeRegistered: a volume that may have a record is not removed while
// nobody can tell, as its record would be left; one that was made without the mesh is.
func TestRemoveBeforeItIsKnownToBeRegistered(t *testing.T) {
	p := newPair(t)
	p.store.unheard(func() { p.a.put(t, "disk", Spec{Size: testSize}) })
	p.store.down = true
	p.a.put(t, "alone", Spec{Size: testSize})
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("one that may be registered: %v", err)
	}
	if err := p.a.Remove(t.Context(), "alone", RemoveSpec{}); err != nil {
		t.Errorf("one that nobody knows: %v", err)
	}
	p.store.down = false
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil || p.store.has(content.KindVolume, "disk") || len(p.a.List()) > 0 {
		t.Errorf("once its record can be read: %v, %+v", err, p.a.List())
	}
}

// mute is a registry that no removal reaches.
type mute struct{ records.Registry }

func (mute) Delete(context.Context, catalog.Record) error { return content.ErrUnavailable }

// TestRemoveThatNeverArrived: a volume whose removal did not reach its record, and that another has
// taken over since, leaves its orphan, as any other that was taken.
func TestRemoveThatNeverArrived(t *testing.T) {
	p := newPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", want, 4, 1)
	real := p.a.cfg.Registry
	p.a.cfg.Registry = mute{real}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); !errors.Is(err, content.ErrUnavailable) {
		t.Fatal(err)
	}
	p.a.cfg.Registry = real
	p.b.put(t, "disk", Spec{Takeover: true})
	p.a.look(t)
	_ = p.a.Remove(t.Context(), "disk", RemoveSpec{})
	p.a.look(t)
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
		t.Error(err)
	}
	p.a.look(t)
	if !p.store.has(content.KindSnapshot, "disk@e1-orphan") || !bytes.Equal(p.a.exported(t, "snapshot:disk@e1-orphan"), want) {
		t.Error("its orphan is gone, or has other bytes")
	}
}

// TestRemoveWhileItsRecordIsLookedAt: a look takes the next epoch while a volume is being removed:
// its record goes all the same.
func TestRemoveWhileItsRecordIsLookedAt(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a = p.a.again(t)
	p.join(p.a)
	p.store.down = true
	p.a.openAll(t.Context())
	p.store.down = false
	p.a.cfg.Holders.Live = func() []trust.PublicKey { // asked whether they read it
		if err := p.a.device("disk").happen(t.Context(), right.Due{}); err != nil {
			t.Error(err)
		}
		return nil
	}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Purge: true}); err != nil || p.store.has(content.KindVolume, "disk") {
		t.Errorf("its record is there: %t, %v", p.store.has(content.KindVolume, "disk"), err)
	}
}

// TestSnapshotWhileItIsRemoved: what was made of a volume while it was being removed is durable, as
// what was made before.
func TestSnapshotWhileItIsRemoved(t *testing.T) {
	p := newPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", want, 4, 1)
	p.a.cfg.Holders.Live = func() []trust.PublicKey {
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Error(err)
		}
		return nil
	}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(p.b.exported(t, "snapshot:disk@1"), want) {
		t.Error("a snapshot that was made meanwhile has other bytes")
	}
}

// reborn is a registry that has another make a volume of a name as soon as that is free.
type reborn struct {
	records.Registry
	make func()
}

func (r reborn) Delete(ctx context.Context, base catalog.Record) error {
	err := r.Registry.Delete(ctx, base)
	if base.Kind == content.KindVolume {
		r.make()
	}
	return err
}

// TestPurgeLeavesTheNextVolumes: what another makes under a name as soon as that is free is not
// purged with what had the name before.
func TestPurgeLeavesTheNextVolumes(t *testing.T) {
	for _, away := range []bool{false, true} {
		p := newPair(t)
		p.a.put(t, "disk", Spec{Size: testSize})
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
		by, other := p.a, p.b
		if away {
			by, other = p.b, newWorld(t)
			p.join(other)
			other.cfg.Self = trust.PublicKey{3}
		}
		by.cfg.Registry = reborn{by.cfg.Registry, func() {
			other.put(t, "disk", Spec{Size: testSize})
			for range 2 {
				if _, err := other.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
					t.Error(err)
				}
			}
		}}
		if err := by.Remove(t.Context(), "disk", RemoveSpec{Purge: true, Force: away}); err != nil {
			t.Error(err)
		}
		if !p.store.has(content.KindSnapshot, "disk@2") {
			t.Error("the snapshot of the next volume is gone")
		}
	}
}

// rumour is a registry where one member alone says of each volume that it is another.
type rumour struct{ records.Registry }

func (r rumour) Volume(ctx context.Context, name string) (catalog.Record, error) {
	x, err := r.Registry.Volume(ctx, name)
	if err == nil {
		x.Body, err = catalog.Volume{ID: content.VolumeID{9}, Size: testSize, Policy: catalog.PolicyLocal, State: catalog.Attached}.Encode(content.NewCodec())
	}
	return x, err
}

func (rumour) SureVolume(context.Context, string) (catalog.Record, error) {
	return catalog.Record{}, content.ErrUnavailable
}

// TestRemoveByHearsay: a volume goes by what the origin says of its record, and stays meanwhile.
func TestRemoveByHearsay(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.cfg.Registry = rumour{p.store}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); !errors.Is(err, content.ErrUnavailable) || len(p.a.List()) != 1 {
		t.Errorf("%v, %+v", err, p.a.List())
	}
	p.a.cfg.Registry = p.store
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil || p.store.has(content.KindVolume, "disk") {
		t.Errorf("once the origin answers: %v", err)
	}
}
