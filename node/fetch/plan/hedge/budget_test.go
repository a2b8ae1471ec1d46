package hedge_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/fetch/plan/hedge"
)

// TestBudget: in no minute is more than a hundredth of its bytes spent.
func TestBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type note struct {
			at           time.Time
			bytes, spent int64
		}
		var b hedge.Budget
		var notes []note
		now := time.Unix(1_800_000_000, 0)
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30_000).Draw(t, "ms")) * time.Millisecond)
			n := rapid.Int64Range(0, 1<<20).Draw(t, "bytes")
			b.Count(now, n)
			notes = append(notes, note{at: now, bytes: n})
			cost := rapid.Int64Range(1, 4096).Draw(t, "cost")
			var bytes, spent int64
			for _, o := range notes {
				if o.at.Unix() > now.Unix()-60 {
					bytes, spent = bytes+o.bytes, spent+o.spent
				}
			}
			if has := spent+cost <= bytes/100; b.Has(now, cost) != has {
				t.Fatalf("Has(%d) = %t with %d spent and %d bytes", cost, !has, spent, bytes)
			} else if has {
				b.Spend(now, cost)
				notes = append(notes, note{at: now, spent: cost})
			}
		}
	})
}

func TestBudgetOfAnIdleMinuteIsNothing(t *testing.T) {
	var b hedge.Budget
	if b.Has(time.Unix(1_800_000_000, 0), 1) {
		t.Error("a byte may be spent though none came")
	}
	b.Count(time.Unix(1_800_000_000, 0), 1<<30)
	if b.Has(time.Unix(1_800_000_000, 0).Add(time.Minute), 1) {
		t.Error("a byte may be spent though the last came a minute ago")
	}
}
