package why

import (
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
)

// TestWordsNameWhoWasSlow: a member that says nothing, a slow origin and a slow disk are told
// apart, by what each read waited for the longest.
func TestWordsNameWhoWasSlow(t *testing.T) {
	begun := time.Unix(1000, 0)
	at := func(s float64) time.Time { return after(begun, s) }
	mute := Read{At: begun, Took: 2.5, Source: "origin", Steps: []Step{
		{What: Led, Peer: "p", Name: "hv7", At: at(0)},
		{What: ReadOrigin, At: at(2), Took: 0.5, Brought: true},
	}}
	slow := Read{At: begun, Took: 3, Source: "origin", Steps: []Step{
		{What: Asked, Peer: "q", At: at(0), Took: 0.001},
		{What: ReadOrigin, At: at(0.001), Took: 2.9},
	}}
	queued := Read{At: begun, Took: 1, Source: "farm", Steps: []Step{{What: Asked, Peer: "r", Name: "hv9", At: at(-5), Brought: true}}}
	got := Explain([]Read{mute, slow, mute, mute, queued, {At: begun, Took: 0.02, Source: "cache"}})
	want := []string{
		"3 of 6 slow reads waited up to 2s for hv7, which brought nothing; then the bytes came from the origin",
		"1 of 6 slow reads waited up to 2.999s for the origin",
		"1 of 6 slow reads waited up to 1s for hv9",
		"1 of 6 slow reads waited up to 20ms for this node's own disk",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
}

// TestLogIsBounded: the slowest of the last minutes stay, whatever comes.
func TestLogIsBounded(t *testing.T) {
	var l Log
	begun := time.Unix(1000, 0)
	for i := range 3 * readsMax {
		l.Note(Read{At: begun, Took: float64(i%readsMax + 1)})
	}
	got := l.Slowest(begun.Add(time.Minute))
	if len(got) != readsMax || got[0].Took != readsMax || got[readsMax-1].Took < readsMax*2/3-1 {
		t.Errorf("%d reads, %v to %v", len(got), got[0].Took, got[len(got)-1].Took)
	}
	l.Note(Read{At: begun.Add(Kept), Took: 1})
	if got := l.Slowest(begun.Add(Kept + time.Second)); len(got) != 1 {
		t.Errorf("%d reads are left after ten minutes", len(got))
	}
}

// TestTraceFollowsThePlanner: what the planner tries and what comes of it are steps, no more
// of them than are kept, and those of another time are none of a read's.
func TestTraceFollowsThePlanner(t *testing.T) {
	var none *Trace
	none.Action(plan.Action{Kind: plan.Ask})
	none.Event(plan.Event{Kind: plan.Answered})
	none.Brought("p")
	tr := new(Trace)
	begun := time.Now()
	tr.Action(plan.Action{Kind: plan.Ask, Peer: "p", Fetch: true})
	tr.Queued("p", 3)
	tr.Action(plan.Action{Kind: plan.Ask, Peer: "q"})
	tr.Action(plan.Action{Kind: plan.ReadOrigin, Hedge: true})
	tr.Brought("p")
	tr.Event(plan.Event{Kind: plan.Answered, Peer: "q", Why: "ask q for root: busy: unavailable"})
	tr.Event(plan.Event{Kind: plan.OriginEnded, Why: "no route"})
	tr.Action(plan.Action{Kind: plan.Drop, Peer: "p", Quiet: time.Second})
	r := Read{At: begun, Took: time.Minute.Seconds()}.With(nil, tr)
	want := []Step{{What: Led, Peer: "p", Outcome: "given up, as nothing came for 1s", Brought: true}, {What: Asked, Peer: "q", Outcome: "busy: unavailable"}, {What: ReadOrigin, Outcome: "no route"}}
	for i, s := range r.Steps {
		if w := want[i]; s.What != w.What || s.Peer != w.Peer || s.Outcome != w.Outcome || s.Brought != w.Brought || s.Took <= 0 {
			t.Errorf("step %d is %+v", i, s)
		}
	}
	for range 2 * stepsMax {
		tr.Action(plan.Action{Kind: plan.Ask, Peer: plan.Peer(peer.ID("p"))})
	}
	if n := len(r.With(tr).Steps); n != stepsMax {
		t.Errorf("%d steps", n)
	}
	if late := (Read{At: begun.Add(-time.Hour), Took: 1}).With(tr); len(late.Steps) != 0 {
		t.Errorf("a read of before has %d steps", len(late.Steps))
	}
}
