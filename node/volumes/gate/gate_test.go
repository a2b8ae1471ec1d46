package gate

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// TestNothingPassesOverAStandstill: what was done before this process stood still is
// acknowledged after it only when the gate was opened by what was learnt since.
func TestNothingPassesOverAStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clock atomic.Int64
		p := NewPulse(func() time.Duration { return time.Duration(clock.Load()) })
		g := New(p)
		g.Admit(p.Gaps())
		for _, wait := range []time.Duration{0, gapMax, gapMax} { // as long as it goes on
			clock.Add(int64(wait))
			if err := g.Pass(t.Context()); err != nil || !g.IsOpen() {
				t.Fatalf("after %s: %v", wait, err)
			}
		}
		before := p.Gaps()
		clock.Add(int64(gapMax) + 1)
		done := make(chan error, 1)
		go func() { done <- g.Pass(context.Background()) }()
		synctest.Wait()
		if len(p.Seen) != 1 || g.IsOpen() {
			t.Error("the gap is not seen")
		}
		g.Admit(before) // by what was read before
		synctest.Wait()
		if len(done) > 0 {
			t.Fatalf("it passes by what was read before: %v", <-done)
		}
		g.Admit(p.Gaps())
		if err := <-done; err != nil {
			t.Error(err)
		}
		clock.Add(int64(gapMax) + 1)
		if err := g.Pass(t.Context()); !errors.Is(err, content.ErrUnavailable) {
			t.Errorf("it waits for ever: %v", err)
		}
		go func() { done <- g.Pass(context.Background()) }()
		synctest.Wait()
		g.End(content.ErrFenced)
		g.Admit(p.Gaps())
		if err := <-done; !errors.Is(err, content.ErrFenced) || g.IsOpen() {
			t.Errorf("fenced: %v", err)
		}
	})
}

// BenchmarkIsOpen is what each write pays.
func BenchmarkIsOpen(b *testing.B) {
	g := New(NewPulse(nil))
	g.Admit(0)
	for b.Loop() {
		if !g.IsOpen() {
			b.Fatal("shut")
		}
	}
}
