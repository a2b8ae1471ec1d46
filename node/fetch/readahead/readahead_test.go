package readahead

import "testing"

// TestWindowGrowsWhileTheGuestGoesOn, and begins anew elsewhere.
func TestWindowGrowsWhileTheGuestGoesOn(t *testing.T) {
	var w Window
	r := w.Missed(10)
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
	if r := w.Missed(500); r != (Run{501, least}) {
		t.Errorf("elsewhere: %+v", r)
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
