package turns

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestTurns: who wants the same waits for room, others don't, and who gives up leaves
// nothing behind.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New[string](4)
		take := func(key string, n int64) func() {
			give, err := turns.Take(t.Context(), key, n)
			if err != nil {
				t.Fatal(err)
			}
			return give
		}
		first, second := take("a", 2), take("a", 2)
		other := take("b", 100) // all there is
		came := false
		go func() { defer take("a", 3)(); came = true }()
		synctest.Wait()
		if first(); came {
			t.Error("a turn came before there was room")
		}
		second()
		if synctest.Wait(); !came {
			t.Error("a turn did not come")
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := turns.Take(ended, "b", 1); !errors.Is(err, context.Canceled) {
			t.Errorf("without room, given up: %v", err)
		}
		if other(); len(turns.of) > 0 {
			t.Errorf("%d are kept that nobody has", len(turns.of))
		}
	})
}
