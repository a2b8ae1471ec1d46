package touch

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// TestOrder: a trace has each chunk once, in the order of first touch, up to its bound, and knows of each that was touched.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		chunks := rapid.Uint64Range(1, 5*content.MapFanout).Draw(r, "chunks")
		reads := rapid.SliceOfN(rapid.Uint64Range(0, chunks-1), 0, 3*Max).Draw(r, "reads")
		var want []uint64
		begun, seen := 0, map[uint64]bool{}
		trace := New(chunks, func() { begun++ })
		for _, index := range reads {
			trace.Touch(index)
			if !seen[index] && len(want) < Max {
				want = append(want, index)
			}
			seen[index] = true
		}
		if got := trace.Chunks(); !slices.Equal(got, want) {
			r.Fatalf("got %v, want %v", got, want)
		}
		if begun != min(1, len(reads)) {
			r.Fatalf("it began %d times", begun)
		}
		for index := range chunks {
			if trace.Has(index) != seen[index] {
				r.Fatalf("chunk %d: %t", index, trace.Has(index))
			}
		}
		if trace.Has(chunks + content.MapFanout) {
			r.Fatal("it has what the image has not")
		}
	})
}

// TestManyAtOnce: guests read side by side.
func TestManyAtOnce(t *testing.T) {
	trace := New(Max, func() {})
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range uint64(Max) {
				trace.Touch((i + uint64(n)*100) % Max)
			}
		})
	}
	all.Wait()
	got := slices.Sorted(slices.Values(trace.Chunks()))
	for i := range uint64(Max) {
		if len(got) != Max || got[i] != i {
			t.Fatalf("%d chunks, %v", len(got), got)
		}
	}
}

// TestWhatIsABoot tells a boot from a look, a copy, and a disk that is read for hours.
func TestWhatIsABoot(t *testing.T) {
	for name, x := range map[string]struct {
		chunks     uint64
		each       time.Duration
		idle       time.Duration
		over, boot bool
	}{
		"boot":               {300, 100 * time.Millisecond, quietFor, true, true},
		"boot, not over":     {300, 100 * time.Millisecond, quietFor / 2, false, true},
		"look":               {Least - 1, time.Millisecond, quietFor, false, false},
		"look, for long":     {Least - 1, time.Millisecond, LastsMax, true, false},
		"copy":               {Max + 1, time.Millisecond, 0, true, false},
		"boot that is large": {Max + 1, -time.Millisecond, 0, true, true},
		"boot that is slow":  {100, 4 * time.Second, 0, true, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			trace := New(1<<20, func() {})
			for i := range x.chunks {
				<-time.After(x.each.Abs())
				if x.each < 0 { // here and there
					i ^= 2
				}
				trace.Touch(i)
			}
			<-time.After(x.idle)
			if over, boot := trace.Over(time.Now()); over != x.over || boot != x.boot {
				t.Errorf("%s: over %t, a boot %t", name, over, boot)
			}
			if whole, begun := len(trace.Boot(true)), len(trace.Boot(false)); begun != 0 || (whole != 0) != x.boot {
				t.Errorf("%s: %d chunks of a boot, %d before its end", name, whole, begun)
			}
			n := len(trace.Chunks())
			if trace.End(); n > 0 {
				trace.Touch(1 << 19)
			}
			if len(trace.Chunks()) != n || (len(trace.Boot(false)) != 0) != x.boot {
				t.Errorf("%s: it goes on behind its end, or %d chunks are of a boot", name, len(trace.Boot(false)))
			}
		})
	}
	if chunks := (*Trace)(nil).Boot(true); chunks != nil {
		t.Errorf("nothing is recorded, and %v are of a boot", chunks)
	}
	if over, boot := New(1, func() {}).Over(time.Now()); over || boot {
		t.Error("nobody has read anything, and it is over")
	}
}
