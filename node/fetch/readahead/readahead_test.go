package readahead

import "testing"

// TestWindowGrowsWhileTheGuestGoesOn, and begins anew elsewhere.
func TestWindowGrowsWhileTheGuestGoesOn(t *testing.T) {
	var w Window
	if r, ok := w.Missed(9); ok {
		t.Errorf("%+v behind one chunk alone", r)
	}
	r, ok := w.Missed(10)
	if !ok {
		t.Fatal("the guest goes on and is not run ahead of")
	}
	at := uint64(10)
	for _, ahead := range []uint64{4, 8, 16, 32, 32, 32} {
		if r.To-1-at != ahead || r.Ahead != ahead {
			t.Fatalf("%+v at %d, want %d chunks ahead", r, at, ahead)
		}
		end, ok := w.Begin(r, 1000)
		if !ok || end != r.To {
			t.Fatalf("%+v ends at %d, %t", r, end, ok)
		}
		w.End()
		next := at + 1 + ahead/steps
		if w.Marks(at+1) || !w.Marks(next) {
			t.Errorf("the mark of %+v is elsewhere", r)
		}
		if at = next; w.Marks(end) {
			t.Fatal("the guest comes to the end before the mark")
		}
		if r, ok = w.Reached(at); !ok || r.From != end {
			t.Fatalf("behind %d comes %+v, %t", end, r, ok)
		}
		if _, again := w.Reached(at); again {
			t.Error("a mark is reached twice")
		}
	}
	if r, ok := w.Missed(at + 2); ok { // it has given up what is slow
		t.Errorf("a guest on its way to the mark is run ahead of anew: %+v", r)
	}
	if end, ok := w.Begin(r, r.From+1); !ok || end != r.From+1 || !w.Marks(at+1+most/steps) && !w.Marks(end-1) {
		t.Errorf("a run that is cut short ends at %d, %t", end, ok)
	}
	w.End()
	for i := range uint64(recentMax) { // at so many places at once
		if r, ok := w.Missed(500 + 100*i); ok {
			t.Errorf("elsewhere: %+v", r)
		}
	}
	for i := range uint64(recentMax) {
		if r, ok := w.Missed(501 + 100*i); !ok || r != (Run{502 + 100*i, 502 + 100*i + least, least}) {
			t.Errorf("it goes on elsewhere: %+v, %t", r, ok)
		}
	}
	for range runsMax {
		if _, ok := w.Begin(Run{0, 4, 4}, 2); !ok {
			t.Error("too few runs at once")
		}
	}
	if _, ok := w.Begin(Run{0, 4, 4}, 2); ok {
		t.Error("too many runs at once")
	}
}
