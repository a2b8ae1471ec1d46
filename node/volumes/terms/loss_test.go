package terms

import (
	"testing"
	"time"
)

// TestLoss: what is said is what the durability promises, and no more.
func TestLoss(t *testing.T) {
	at := time.Date(2026, 11, 29, 5, 0, 0, 0, time.UTC)
	for _, x := range []struct {
		v     View
		want  string
		here  bool
		bytes int64
	}{
		{View{Node: "me", State: StateAttached, Durability: "local"}, "nothing: the bucket has all that was written", false, 0},
		{View{Node: "me", State: StateAttached, Durability: "local", Lag: 3 << 20, FoldedAt: at}, "3.0 MiB, written since 2026-11-29T05:00:00Z", true, 3 << 20},
		{View{Node: "me", State: StateFull, Durability: "local", Lag: 1 << 20}, "1.0 MiB, written since it was made", true, 1 << 20},
		{View{Node: "me", State: StateAttached, Durability: "farm:2", Lag: 9, HolderNames: []string{"a", "b"}}, "nothing that was flushed: a, b have it", false, 0},
		{View{Node: "me", State: StateAttached, Durability: "farm:2", Lag: 9, Short: true}, "up to 9 B, written since it was made: too few members hold it", true, 9},
		{View{Node: "me", State: StateAttached, Durability: "farm:1", Lag: 9, Degraded: at}, "up to 9 B, written since it was made: too few members hold it", true, 9},
		{View{Node: "me", State: StateAttached, Durability: "origin", Lag: 9}, "nothing that was flushed: the bucket has it", false, 0},
		{View{Node: "me", State: StateUncommitted, Durability: "local", DirtyBytes: 5}, "all of it: the origin does not know it yet", true, 5},
		{View{Node: "me", State: StateFailed, Durability: "local"}, "what was written since it was made, as far as the bucket has not got it", true, 0},
		{View{Node: "me", State: StateDetached, Durability: "origin"}, "nothing that was flushed: the bucket has it", false, 0},
		{View{State: StateReleased, Durability: "local"}, "nothing: the bucket has all of it", false, 0},
		{View{Node: "me", State: StateReading, Durability: "local"}, "nothing: it is a copy, and its writer has more", false, 0},
		{View{Node: "other", State: StateAttached, Durability: "local", FoldedAt: at}, "what was written there since 2026-11-29T05:00:00Z", false, 0},
		{View{Node: "other", State: StateAttached, Durability: "farm:1"}, "nothing that was flushed: members of its farm have it", false, 0},
		{View{Node: "other", State: StateAttached, Durability: "farm:1", Degraded: at}, "what was written there since it was made", false, 0},
		{View{Node: "other", State: StateAttached, Durability: "origin"}, "nothing that was flushed: the bucket has it", false, 0},
		{View{Node: "me", State: StateFailed, Detail: "no folder"}, "not known: no folder", true, 0},
	} {
		if got := LossOf(x.v, "me"); got != (Loss{x.want, x.here, x.bytes}) {
			t.Errorf("%+v of %s %s %s", got, x.v.Node, x.v.State, x.v.Durability)
		}
	}
}
