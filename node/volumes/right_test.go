package volumes

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/volumes/terms"
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
	if err := w.openAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	view, err := w.Get("web1")
	if err != nil || view.State != terms.StateFailed || !strings.Contains(view.Detail, "older copy") || w.device("web1").vol != nil {
		t.Errorf("%+v, %v", view, err)
	}
}
