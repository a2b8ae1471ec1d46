package volumes

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/gate"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// TestLostRepliesFenceNobody: a record is written though each reply is lost, or each
// second try comes to nothing, and nobody is fenced by that.
func TestLostRepliesFenceNobody(t *testing.T) {
	w := newWorld(t)
	home := newStore()
	w.cfg.Registry = home
	w.create(t, "web1")
	n := 0
	home.fault = func() (before, after bool) { n++; return n%3 == 1, n%3 == 2 }
	a := w.device("web1")
	for want := int64(1); want <= 30; want++ {
		for try := 0; ; try++ {
			err := a.revise(t.Context(), func(body *catalog.Volume) error { body.IOPS = want; return nil })
			if err == nil {
				break
			}
			if errors.Is(err, content.ErrFenced) || try > 5 {
				t.Fatalf("write %d, try %d: %v", want, try, err)
			}
		}
		if body, err := home.body("web1"); err != nil || body.IOPS != want {
			t.Fatalf("write %d is said to be there: %+v, %v", want, body, err)
		}
	}
	if !a.gate.IsOpen() || w.state(t, "web1") != terms.StateAttached {
		t.Errorf("it is %s", w.state(t, "web1"))
	}
}

// hanging is an origin that answers nobody before he goes away, while it hangs.
type hanging struct {
	*store
	hangs  atomic.Bool
	writes chan struct{} // has one when a commit began to hang
}

func (x *hanging) Volume(ctx context.Context, name string) (catalog.Record, error) {
	if x.hangs.Load() {
		<-ctx.Done()
		return catalog.Record{}, content.ErrUnavailable
	}
	return x.store.Volume(ctx, name)
}

func (x *hanging) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	if x.hangs.Load() {
		x.writes <- struct{}{}
		<-ctx.Done()
		return catalog.Record{}, bucket.ErrUnknown
	}
	return x.store.Commit(ctx, ch)
}

// TestAStandstillWhileTheOriginHangs: a volume of the policy local goes on, though its record
// can't be read, and though somebody is at it who waits for the origin; before a client that
// waits gives up.
func TestAStandstillWhileTheOriginHangs(t *testing.T) {
	w := newWorld(t)
	home := &hanging{store: newStore(), writes: make(chan struct{}, 1)}
	w.cfg.Registry = home
	var slept atomic.Int64
	w.pulse = gate.NewPulse(func() time.Duration { return time.Duration(slept.Load()) })
	w.create(t, "web1")
	a := w.device("web1")
	home.hangs.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	var under sync.WaitGroup
	defer under.Wait()
	defer cancel()
	under.Go(func() {
		_ = a.revise(ctx, func(body *catalog.Volume) error { body.IOPS = 7; return nil })
	})
	<-home.writes
	under.Go(func() { _ = w.watchPulse(ctx) })
	slept.Add(int64(time.Minute))
	if err := (&gate.Device{Volume: a.vol, Gate: a.gate}).WriteAt(ctx, make([]byte, 512), 0, true); err != nil {
		t.Fatal(err)
	}
	home.hangs.Store(false)
	w.look(t)
	if body, err := home.body("web1"); err != nil || a.revise(ctx, func(b *catalog.Volume) error { b.IOPS = 8; return nil }) != nil || w.state(t, "web1") != terms.StateAttached {
		t.Errorf("once the origin answers: %+v, %v, %s", body, err, w.state(t, "web1"))
	}
}

// TestEpochOutlivesTheName: a name that is made again goes on behind all epochs that it had.
func TestEpochOutlivesTheName(t *testing.T) {
	w := newWorld(t)
	w.cfg.Registry = newStore()
	last := uint64(0)
	for range 3 {
		w.create(t, "web1")
		for range 2 {
			if _, err := w.Detach(t.Context(), "web1", false); err != nil {
				t.Fatal(err)
			}
			view, _, err := w.Put(t.Context(), "web1", Spec{})
			if err != nil || view.Epoch <= last || !view.Confirmed {
				t.Fatalf("%+v, %v; epoch %d was there", view, err, last)
			}
			last = view.Epoch
		}
		if err := w.Remove(t.Context(), "web1", RemoveSpec{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskThatIsOlderThanTheBucket: a disk of which the bucket has more is a copy of
// what it was once. It serves nothing, says why, and a takeover goes on with the bucket's.
func TestDiskThatIsOlderThanTheBucket(t *testing.T) {
	w := newWorld(t)
	home := newStore()
	w.cfg.Registry = home
	w.create(t, "web1")
	a := w.device("web1")
	if err := a.vol.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 512), 0, true); err != nil {
		t.Fatal(err)
	}
	if err := a.revise(t.Context(), func(body *catalog.Volume) error {
		body.Segments = []content.SegmentRef{{Volume: body.ID, Epoch: body.Epoch, Through: content.Position{Number: 9, Seq: 1000}, Bytes: 64}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w = w.again(t)
	w.cfg.Registry = home
	w.openAll(t.Context())
	view, err := w.Get("web1")
	if err != nil || view.State != terms.StateFailed || !strings.Contains(view.Detail, "older copy") || w.device("web1").vol != nil {
		t.Errorf("%+v, %v", view, err)
	}
}

// TestDiskThatIsOlderThanItsRecord: so is one whose record knows of a later start. It may be
// looked at, which is no takeover, and who asks too late is told by what.
func TestDiskThatIsOlderThanItsRecord(t *testing.T) {
	w := newWorld(t)
	home := newStore()
	w.cfg.Registry = home
	w.create(t, "web1")
	r, body, err := w.records().Volume(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	body.Epoch, body.Generation = body.Epoch+1, 7
	if _, err := w.records().PutVolume(t.Context(), "web1", &r, body); err != nil {
		t.Fatal(err)
	}
	w = w.again(t)
	w.cfg.Registry = home
	w.openAll(t.Context())
	if view, err := w.Get("web1"); err != nil || view.State != terms.StateFailed || !strings.Contains(view.Detail, "older copy") {
		t.Errorf("%+v, %v", view, err)
	}
	if _, _, err := w.Put(t.Context(), "web1", Spec{Takeover: true, Generation: 3}); !errors.Is(err, content.Stale) || !strings.Contains(err.Error(), "7 was here, and this one has 3") {
		t.Errorf("too late: %v", err)
	}
	w.put(t, "web1", Spec{ReadOnly: true})
	if _, _, err := w.Put(t.Context(), "web1", Spec{Takeover: true}); !errors.Is(err, content.Attached) {
		t.Errorf("a takeover of what is read-only here: %v", err)
	}
}

// TestRecordsAreLookedAtWhenDue: the record of a volume that was made or attached just now
// says whose it is; all are read when the node was cut off, and one that could not be then
// before long.
func TestRecordsAreLookedAtWhenDue(t *testing.T) {
	p := newPair(t)
	var returned int64
	p.a.cfg.Returned = func() int64 { return returned }
	p.a.put(t, "made", Spec{Size: testSize})
	p.b.put(t, "attached", Spec{Size: testSize})
	if _, err := p.b.Detach(t.Context(), "attached", false); err != nil {
		t.Fatal(err)
	}
	p.a.put(t, "attached", Spec{})
	due := right.NewLooks(0, p.a.now)
	looks := func(within time.Duration) int {
		before := p.store.reads
		for range within / tryInterval {
			p.a.now = p.a.now.Add(tryInterval)
			p.a.lookAtOwned(t.Context(), due)
		}
		return p.store.reads - before
	}
	for _, step := range []struct {
		what   string
		do     func()
		within time.Duration
		want   int
	}{
		{"at first", func() {}, right.SaidFor - tryInterval, 0},
		{"in the end", func() {}, right.SaidFor, 2},
		{"cut off", func() { returned++ }, tryInterval, 2},
		{"once", func() {}, time.Minute, 0},
		{"cut off again, and in vain", func() { returned++; p.store.down = true }, tryInterval, 2},
		{"for now", func() {}, time.Minute - tryInterval, 0},
		{"back", func() { p.store.down = false }, tryInterval, 2},
		{"at last", func() {}, right.SaidFor - tryInterval, 0},
	} {
		step.do()
		if got := looks(step.within); got != step.want {
			t.Errorf("%s: %d records were read, want %d", step.what, got, step.want)
		}
	}
}
