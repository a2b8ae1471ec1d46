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
	for _, want := range []uint64{4, 8, 16, 32, 32} {
		if r.Size != want {
			t.Fatalf("%+v, want %d chunks", r, want)
		}
		end, ok := w.Begin(r, 1000)
		if !ok || end != r.From+want {
			t.Fatalf("%+v ends at %d, %t", r, end, ok)
		}
		w.End()
		if w.Marks(r.From) || !w.Marks(r.From+want/2) {
			t.Errorf("the mark of %+v is elsewhere", r)
		}
		next, ok := w.Reached(r.From + want/2)
		if !ok || next.From != end {
			t.Fatalf("after %+v comes %+v, %t", r, next, ok)
		}
		if _, again := w.Reached(r.From + want/2); again {
			t.Error("a mark is reached twice")
		}
		r = next
	}
	for i := range uint64(recentMax) { // at so many places at once
		if r, ok := w.Missed(500 + 100*i); ok {
			t.Errorf("elsewhere: %+v", r)
		}
	}
	for i := range uint64(recentMax) {
		if r, ok := w.Missed(501 + 100*i); !ok || r != (Run{502 + 100*i, least}) {
			t.Errorf("it goes on elsewhere: %+v, %t", r, ok)
		}
	}
	for range runsMax {
		if _, ok := w.Begin(Run{0, 4}, 2); !ok {
			t.Error("too few runs at once")
		}
	}
	if _, ok := w.Begin(Run{0, 4}, 2); ok {
		t.Error("too many runs at once")
	}
}
