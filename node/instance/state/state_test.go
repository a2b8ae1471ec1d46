package state

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// through gives an instance events in turn.
func through(t *testing.T, i Instance, events ...Event) Instance {
	t.Helper()
	for _, e := range events {
		var err error
		if i, err = i.On(e); err != nil {
			t.Fatalf("%s in %s: %v", e, i.State, err)
		}
	}
	return i
}

// finish has all steps done that are left.
func finish(i Instance) Instance {
	for !i.IsStable() {
		i, _ = i.On(Done)
	}
	return i
}

func in(s State) Instance { return Instance{State: s} }

// TestEveryEdge goes along each edge from a state that lasts.
func TestEveryEdge(t *testing.T) {
	for _, x := range []struct {
		from   State
		e      Event
		during State
		steps  []Step
		to     State
	}{
		{Unprovisioned, Provision, Provisioning, []Step{Claim, Hydrate, Reserve, Start, Await}, Provisioned},
		{Unprovisioned, Obliterate, Obliterating, []Step{Forget, Clear}, Unprovisioned},
		{Provisioned, Hibernate, Hibernating, []Step{Stop}, Hibernated},
		{Provisioned, Deprovision, Deprovisioning, []Step{Compact, Stop, Dehydrate, Release, Clear}, Unprovisioned},
		{Provisioned, Idle, Deprovisioning, []Step{Compact, Stop, Dehydrate, Release, Clear}, Unprovisioned},
		{Provisioned, Obliterate, Obliterating, []Step{Stop, Forget, Clear}, Unprovisioned},
		{Provisioned, Fenced, Orphaned, []Step{Stop}, Orphaned},
		{Hibernated, Wake, Waking, []Step{Reserve, Start, Await}, Provisioned},
		{Hibernated, Deprovision, Deprovisioning, []Step{Stop, Dehydrate, Release, Clear}, Unprovisioned},
		{Hibernated, Idle, Deprovisioning, []Step{Stop, Dehydrate, Release, Clear}, Unprovisioned},
		{Hibernated, Obliterate, Obliterating, []Step{Stop, Forget, Clear}, Unprovisioned},
		{Hibernated, Fenced, Orphaned, []Step{Stop}, Orphaned},
		{Crashed, Due, Recovering, []Step{Start, Await}, Provisioned},
		{Crashed, Deprovision, Deprovisioning, []Step{Stop, Dehydrate, Release, Clear}, Unprovisioned},
		{Crashed, Obliterate, Obliterating, []Step{Stop, Forget, Clear}, Unprovisioned},
		{Crashed, Fenced, Orphaned, []Step{Stop}, Orphaned},
		{Orphaned, Obliterate, Obliterating, []Step{Stop, Clear}, Unprovisioned},
	} {
		i := through(t, in(x.from), x.e)
		if i.State != x.during || !slices.Equal(i.Left, x.steps) || finish(i).State != x.to {
			t.Errorf("%s in %s: %+v, and then %s", x.e, x.from, i, finish(i).State)
		}
	}
}

// TestWhatIsSoAlready changes nothing, and what can't be is said.
func TestWhatIsSoAlready(t *testing.T) {
	for _, x := range []struct {
		in   State
		e    Event
		want error
	}{
		{Unprovisioned, Deprovision, nil}, {Provisioned, Provision, nil}, {Provisioned, Wake, nil}, {Hibernated, Hibernate, nil}, {Crashed, Exited, nil}, {Crashed, Idle, nil}, {Hibernated, Exited, nil}, {Unprovisioned, Fenced, nil},
		{Unprovisioned, Hibernate, content.ErrConflict}, {Unprovisioned, Wake, content.ErrConflict}, {Hibernated, Provision, content.ErrConflict}, {Crashed, Provision, content.ErrConflict}, {Crashed, Hibernate, content.ErrConflict}, {Crashed, Wake, content.ErrConflict},
		{Orphaned, Provision, content.ErrFenced}, {Orphaned, Deprovision, content.ErrFenced}, {Orphaned, Wake, content.ErrFenced},
	} {
		if i, err := in(x.in).On(x.e); !errors.Is(err, x.want) || i.State != x.in || !i.IsStable() {
			t.Errorf("%s in %s: %+v, %v, want %v", x.e, x.in, i, err, x.want)
		}
	}
}

// TestWhatFails is taken back, or tried until it is done: nothing is cleared that no record names.
func TestWhatFails(t *testing.T) {
	for _, x := range []struct {
		from   State
		events []Event
		want   Instance
	}{
		{Unprovisioned, []Event{Provision, Done, Failed}, Instance{State: Provisioning, Left: []Step{Stop, Release, Clear}, To: Unprovisioned, Undoing: true}},
		{Unprovisioned, []Event{Provision, Failed, Done, Failed}, Instance{State: Provisioning, Left: []Step{Release, Clear}, To: Unprovisioned, Undoing: true, Tries: 1}},
		{Unprovisioned, []Event{Provision, Failed, Done, Done, Done}, Instance{State: Unprovisioned}},
		{Provisioned, []Event{Hibernate, Failed}, Instance{State: Provisioned}},
		{Hibernated, []Event{Wake, Done, Done, Failed, Done}, Instance{State: Hibernated}},
		{Provisioned, []Event{Deprovision, Failed}, Instance{State: Deprovisioning, Left: []Step{Stop, Dehydrate, Release, Clear}, To: Unprovisioned}},
		{Provisioned, []Event{Deprovision, Done, Done, Failed, Failed}, Instance{State: Deprovisioning, Left: []Step{Dehydrate, Release, Clear}, To: Unprovisioned, Tries: 2}},
		{Provisioned, []Event{Deprovision, Done, Done, Failed, Failed, Deprovision}, Instance{State: Deprovisioning, Left: []Step{Dehydrate, Release, Clear}, To: Unprovisioned}},
		{Provisioned, []Event{Deprovision, Done, Done, Failed, Obliterate, Failed}, Instance{State: Obliterating, Left: []Step{Stop, Forget, Clear}, To: Unprovisioned}},
		{Provisioned, []Event{Exited, Due, Done, Failed, Done}, Instance{State: Crashed, Crashes: 2}},
		{Provisioned, []Event{Exited, Due, Done, Done}, Instance{State: Provisioned, Crashes: 1}},
		{Provisioned, []Event{Exited, Due, Done, Done, Steady}, Instance{State: Provisioned}},
		{Provisioned, []Event{Obliterate, Failed}, Instance{State: Crashed}}, {Hibernated, []Event{Obliterate, Failed}, Instance{State: Hibernated}}, {Orphaned, []Event{Obliterate, Failed}, Instance{State: Orphaned}},
		{Provisioned, []Event{Obliterate, Done, Failed}, Instance{State: Obliterating, Left: []Step{Forget, Clear}, To: Unprovisioned, Tries: 1}},
		{Provisioned, []Event{Fenced, Failed}, Instance{State: Orphaned, Left: []Step{Stop}, To: Orphaned, Tries: 1}},
	} {
		got := through(t, in(x.from), x.events...)
		if got.State != x.want.State || !slices.Equal(got.Left, x.want.Left) || got.To != x.want.To || got.Undoing != x.want.Undoing || got.Tries != x.want.Tries || got.Crashes != x.want.Crashes {
			t.Errorf("%s, %v: %+v, want %+v", x.from, x.events, got, x.want)
		}
	}
}

// TestMeanwhile: an operation is joined by who asks for it again, and only an end is kept for later.
func TestMeanwhile(t *testing.T) {
	waking := through(t, in(Hibernated), Wake)
	if again := through(t, waking, Wake); !slices.Equal(again.Left, waking.Left) {
		t.Errorf("joined: %+v", again)
	}
	if _, err := waking.On(Hibernate); !errors.Is(err, content.ErrConflict) {
		t.Errorf("hibernate while it wakes: %v", err)
	}
	if i := finish(through(t, waking, Deprovision)); i.State != Unprovisioned {
		t.Errorf("an end that was asked for: %+v", i)
	}
	if i := through(t, waking, Deprovision, Obliterate, Deprovision); i.Then != Obliterate {
		t.Errorf("the end that ends more is honoured: %+v", i)
	}
	if i := finish(through(t, waking, Deprovision, Fenced)); i.State != Orphaned {
		t.Errorf("another has it: %+v", i)
	}
}

// TestAnyHistory: whatever happens, what is here is cleared only behind a record that names it, or that was forgotten, or
// before anything was ready; a workload is started only once it is claimed; and an end comes once all steps are done.
func TestAnyHistory(t *testing.T) {
	events := []Event{Provision, Hibernate, Wake, Deprovision, Obliterate, Exited, Steady, Idle, Due, Fenced, Done, Done, Done, Failed}
	rapid.Check(t, func(r *rapid.T) {
		var i Instance
		mine, ready, written := false, false, false // the record is this node's; it has been ready; something here is in no record
		for range rapid.IntRange(1, 60).Draw(r, "length") {
			e := rapid.SampledFrom(events).Draw(r, "event")
			if e == Done && !i.IsStable() {
				switch i.Left[0] {
				case Claim:
					mine = true
				case Hydrate:
					ready, written = false, false
				case Start:
					if !mine {
						r.Fatalf("it is started, and is nobody's: %+v", i)
					}
					written = true
				case Await:
					ready = true
				case Dehydrate:
					written = false
				case Forget:
					mine, written = false, false
				case Release:
					mine = false
				case Clear:
					if written && ready && i.State != Obliterating {
						r.Fatalf("what no record has is cleared: %+v", i)
					}
					ready, written = false, false
				}
			}
			if e == Fenced {
				mine = false
			}
			next, err := i.On(e)
			if err != nil && next.State != cmpState(i.State) {
				r.Fatalf("%s was refused, and has changed %+v to %+v", e, i, next)
			}
			i = next
		}
		for n := 0; !i.IsStable(); n++ {
			if i, _ = i.On(Done); n > 20 {
				r.Fatalf("it has no end: %+v", i)
			}
		}
	})
}

func cmpState(s State) State {
	if s == "" {
		return Unprovisioned
	}
	return s
}
