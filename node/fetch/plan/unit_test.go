package plan_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

var epoch = time.Unix(1_800_000_000, 0)

func TestRankSpreadsRunsEvenly(t *testing.T) {
	const members, runs = 10, 10_000
	var farm []plan.Peer
	for i := range members {
		farm = append(farm, plan.Peer(fmt.Sprint("member ", i)))
	}
	led, moved := map[plan.Peer]int{}, 0
	for r := range runs {
		key := fmt.Sprintf("mesh/2026112022-%032x/%d", r/32, r%32)
		ranks := plan.Rank(key, farm)
		led[ranks[0]]++
		with := plan.Rank(key, append(farm, "newcomer"))
		if with[0] != ranks[0] {
			moved++
			if with[0] != "newcomer" || with[1] != ranks[0] {
				t.Fatalf("a join made %s of %s and %s", ranks[0], with[0], with[1])
			}
		}
	}
	for p, n := range led {
		if math.Abs(float64(n)/(runs/members)-1) > 0.15 {
			t.Errorf("%s leads %d of %d runs", p, n, runs)
		}
	}
	if want := runs / (members + 1); moved < want*8/10 || moved > want*12/10 {
		t.Errorf("a join moved %d runs, want about %d", moved, want)
	}
}

func TestBreakerPassesOverForLongerAndForgets(t *testing.T) {
	var b plan.Breaker
	now := epoch
	passed := func() time.Duration { return b.Passed(now, false)["p"].Sub(now) }
	want := func(d time.Duration) {
		t.Helper()
		if got := passed(); got != d {
			t.Fatalf("passed over for %s, want %s", got, d)
		}
	}
	b.Fail("p", now)
	b.Fail("p", now) // two requests that failed together
	want(2 * time.Second)
	for _, d := range []time.Duration{4, 8, 16, 32, 60, 60} {
		now = now.Add(passed())
		b.Fail("p", now)
		want(d * time.Second)
	}
	b.Work("p", now) // an answer that was on its way
	want(time.Minute)
	now = now.Add(time.Minute)
	b.Work("p", now)
	b.Fail("p", now)
	want(2 * time.Second)
	b.Aside("p", now, time.Hour)
	b.Fail("p", now)
	want(time.Hour)
}

// TestWhoHurriesMeetsAFailedMemberOnce: from then on it is somebody else that tries it,
// one at a time, until it has answered.
func TestWhoHurriesMeetsAFailedMemberOnce(t *testing.T) {
	var b plan.Breaker
	now := epoch
	b.Stall("p", now, 2*time.Second)
	for range 5 {
		if b.Due("p", now) {
			t.Error("it is tried before its time")
		}
		now = now.Add(b.Passed(now, false)["p"].Sub(now))
		if len(b.Passed(now, false)) != 0 || len(b.Passed(now, true)) != 1 {
			t.Errorf("passed over: %v, by who hurries %v", b.Passed(now, false), b.Passed(now, true))
		}
		if !b.Due("p", now) || b.Due("p", now) {
			t.Error("want it tried by one")
		}
		now = now.Add(time.Second)
		b.Stall("p", now, time.Second)
	}
	if left := b.Passed(now, true)["p"].Sub(now); left != time.Minute {
		t.Errorf("after six times in vain it has %s", left)
	}
	now = now.Add(time.Minute)
	b.Due("p", now)
	if b.Work("p", now.Add(time.Second)); len(b.Passed(now, true)) != 0 {
		t.Error("it has answered, and is passed over")
	}
}

// TestAClimbIsFinalByTheWordOfTheOrigin and of all that were asked.
func TestAClimbIsFinalByTheWordOfTheOrigin(t *testing.T) {
	for _, c := range []struct {
		origin, gone, answers, final bool
	}{{true, true, true, true}, {true, true, false, false}, {true, false, true, false}, {false, false, true, false}} {
		m := plan.NewMember("a", "f")
		m.Farm([]plan.Peer{"a", "b"})
		m.Origin = c.origin
		_, j := m.Join(plan.Config{Key: "r", Root: m.Root("root"), Depth: plan.Led, Guest: true, Hurry: true}, []plan.Wanted{{Object: new(plan.Object)}})
		acts := m.Step(epoch, plan.Event{Kind: plan.Start, Job: j})
		for len(acts) == 1 && acts[0].Kind != plan.Fail {
			e := plan.Event{Kind: plan.Answered, Job: j, Peer: acts[0].Peer}
			if acts[0].Kind == plan.ReadOrigin {
				e.Kind, e.Why, e.Never = plan.OriginEnded, "it says no", c.gone
			} else if !c.answers {
				e.Why = "silent"
			}
			acts = m.Step(epoch, e)
		}
		if len(acts) != 1 || acts[0].Final != c.final {
			t.Errorf("%+v: %+v", c, acts)
		}
	}
}

// TestOneMemberIsOneWord: a member that says that the bytes are nowhere, and refers, is asked
// again, and has one word all the same: a guest waits on.
func TestOneMemberIsOneWord(t *testing.T) {
	m := plan.NewMember("a", "f")
	m.Farm([]plan.Peer{"a", "b", "c", "d"})
	_, j := m.Join(plan.Config{Key: "r", Root: m.Root("root"), Guest: true, Hurry: true}, []plan.Wanted{{Object: new(plan.Object)}})
	acts := m.Step(epoch, plan.Event{Kind: plan.Start, Job: j})
	liar, words := acts[0].Peer, 0
	for len(acts) == 1 && acts[0].Kind != plan.Fail {
		e := plan.Event{Kind: plan.Answered, Job: j, Peer: acts[0].Peer}
		if e.Peer == liar && acts[0].Fetch {
			words++
			e.Nowhere, e.Refer = true, plan.Peer(fmt.Sprint(words))
		}
		acts = m.Step(epoch, e)
	}
	if len(acts) != 1 || acts[0].Final || words < 2 {
		t.Errorf("%d words of one: %+v", words, acts)
	}
}

// TestABusyMemberIsAskedAgain: another that shows the run is asked before, once each, and one
// that says so for ever is asked twice.
func TestABusyMemberIsAskedAgain(t *testing.T) {
	m := plan.NewMember("a", "f")
	m.Asks, m.Origin = true, true
	r := m.Root("root")
	for _, p := range []plan.Peer{"p", "q", "s", "t"} {
		var one content.Bitmap
		one.Add(0)
		if err := r.Show(p, true, true, &one); err != nil {
			t.Fatal(err)
		}
	}
	_, j := m.Join(plan.Config{Key: "r", Root: r, Ask: "p"}, []plan.Wanted{{Object: new(plan.Object)}})
	acts, asked := m.Step(epoch, plan.Event{Kind: plan.Start, Job: j}), []plan.Peer{}
	for len(acts) == 1 && acts[0].Kind == plan.Ask {
		asked = append(asked, acts[0].Peer)
		acts = m.Step(epoch, plan.Event{Kind: plan.Answered, Job: j, Peer: acts[0].Peer, Refer: acts[0].Peer})
	}
	if len(asked) != 6 || asked[0] != "p" || asked[3] != "p" || asked[4] != asked[5] || acts[0].Kind != plan.ReadOrigin {
		t.Errorf("%v are asked, then %+v", asked, acts)
	}
}

func TestBreakerIsBounded(t *testing.T) {
	var b plan.Breaker
	for i := range 20_000 {
		b.Fail(plan.Peer(fmt.Sprint(i)), epoch.Add(time.Duration(i)*time.Millisecond/10))
	}
	if n := len(b.Passed(epoch.Add(2*time.Second), true)); n > 4096 {
		t.Errorf("%d members are remembered", n)
	}
}

// TestAStepAllocatesNothing beyond its actions, in a farm of 200 where all show what is
// missing and one is asked.
func TestAStepAllocatesNothing(t *testing.T) {
	m := plan.NewMember("p0", "f")
	m.Asks, m.Searches = true, true
	root := m.Root("root")
	var farm []plan.Peer
	for i := range 200 {
		farm = append(farm, plan.Peer(fmt.Sprint("p", i)))
		var b content.Bitmap
		b.Add(0)
		if err := root.Show(farm[i], false, true, &b); err != nil {
			t.Fatal(err)
		}
	}
	m.Farm(farm)
	m.Fail("p7", epoch)
	_, j := m.Join(plan.Config{Key: "r", Root: root, Depth: plan.Led, Hurry: true}, []plan.Wanted{{Object: new(plan.Object)}})
	acts := m.Step(epoch, plan.Event{Kind: plan.Start, Job: j})
	if len(acts) != 1 || acts[0].Kind != plan.Ask {
		t.Fatalf("it begins with %v", acts)
	}
	for _, e := range []plan.Event{{Kind: plan.Woke, Job: j}, {Kind: plan.Brought, Job: j, Peer: acts[0].Peer}} {
		if n := testing.AllocsPerRun(100, func() {
			m.Farm(farm)
			m.Step(epoch, e)
			j.Wake()
		}); n > 0 {
			t.Errorf("a step of kind %d allocates %v times", e.Kind, n)
		}
	}
	if n := testing.AllocsPerRun(100, func() { m.Leads("r") }); n > 0 {
		t.Errorf("to say who leads allocates %v times", n)
	}
}
