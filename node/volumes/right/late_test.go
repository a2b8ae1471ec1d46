package right

import (
	"fmt"
	"testing"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/trust"
)

// TestACommitThatArrivesLate: one that a killed process had sent arrives when the next one
// has read the record. It is this node's, and fences nobody.
func TestACommitThatArrivesLate(t *testing.T) {
	self := trust.PublicKey{1}
	record := func(s Stamp) Sighted {
		return Sighted{Body: catalog.Volume{Holder: self, Epoch: s.Epoch, Incarnation: s.Incarnation, State: catalog.Attached}}
	}
	s := State{Self: self, Process: 30, Stamp: Stamp{1, 10}, Tried: []Stamp{{2, 20}, {3, 25}}, Here: true}
	s, _ = Step(s, Asked{})
	s, _ = Step(s, record(Stamp{2, 20}))
	s, _ = Step(s, Overtaken{})
	after, deeds := Step(s, record(Stamp{3, 25}))
	if after.Stage != Taking || fmt.Sprint(deeds) != "[keep commit]" {
		t.Errorf("it is %s, %v", after.Stage, deeds)
	}
}

// TestNoRoomToNoteAnEpoch: what the record says to be this node's is served under the epoch
// that is known, and looked at again; what another has is not taken.
func TestNoRoomToNoteAnEpoch(t *testing.T) {
	self := trust.PublicKey{1}
	mine := Sighted{Body: catalog.Volume{Holder: self, Epoch: 3, Incarnation: 1, State: catalog.Attached}}
	begin := State{Self: self, Process: 2, Stamp: Stamp{3, 1}, Last: 3, Here: true}
	for what, x := range map[string]struct {
		wish   Wish
		seen   Sighted
		events []Event
		stage  Stage
		want   string
	}{
		"its own":                 {seen: mine, stage: Unconfirmed, want: "[serve]"},
		"its own, by force":       {wish: Wish{Takeover: true}, seen: mine, stage: Unconfirmed, want: "[serve]"},
		"another's":               {wish: Wish{Takeover: true}, seen: Sighted{Body: catalog.Volume{Holder: trust.PublicKey{2}, Epoch: 4, State: catalog.Attached}}, stage: Idle, want: "[full]"},
		"confirmed":               {seen: mine, events: []Event{Due{}, mine, Unkept{}}, stage: Unconfirmed, want: "[open]"},
		"looked at again":         {seen: mine, events: []Event{Due{}, mine, Unkept{}, Due{}}, stage: Unconfirmed, want: "[vouch]"},
		"confirmed and cut short": {seen: mine, events: []Event{Due{}, mine, Due{}}, stage: Unconfirmed, want: "[vouch]"},
	} {
		s, _ := Step(begin, Asked{x.wish})
		s, _ = Step(s, x.seen)
		var deeds []Deed
		for _, e := range append([]Event{Unkept{}}, x.events...) {
			s, deeds = Step(s, e)
		}
		if s.Stage != x.stage || fmt.Sprint(deeds) != x.want {
			t.Errorf("%s: it is %s, %v", what, s.Stage, deeds)
		}
	}
}

// TestTakenByThisProcessAndNotHere: what the record says that this very process has taken,
// and of which it has nothing, is made again; what an earlier one had may be on a disk that
// is not mounted, and what is here and older than the bucket is another thing.
func TestTakenByThisProcessAndNotHere(t *testing.T) {
	self := trust.PublicKey{1}
	seen := Sighted{Body: catalog.Volume{Holder: self, Epoch: 7, Incarnation: 2, State: catalog.Attached}}
	for what, x := range map[string]struct {
		state State
		want  string
	}{
		"nothing is here":       {State{Process: 2}, "[adopt keep commit]"},
		"a leftover":            {State{Process: 2, Last: 5, Stamp: Stamp{5, 2}}, "[adopt keep commit]"},
		"it was held":           {State{Process: 2, Last: 5, Stamp: Stamp{5, 2}, Here: true}, "[adopt keep commit]"},
		"an earlier process":    {State{Process: 3}, "[refuse]"},
		"taken away since then": {State{Process: 2, Last: 7}, "[refuse]"},
	} {
		x.state.Self = self
		s, _ := Step(x.state, Asked{})
		if _, deeds := Step(s, seen); fmt.Sprint(deeds) != x.want {
			t.Errorf("%s: %v, want %s", what, deeds, x.want)
		}
	}
}

// TestVouched: what holders have said opens the gate while the record can't be read, until
// the process stands still again.
func TestVouched(t *testing.T) {
	self := trust.PublicKey{1}
	mine := Sighted{Body: catalog.Volume{Holder: self, Epoch: 3, Incarnation: 2, State: catalog.Attached}}
	s := State{Self: self, Process: 2, Stamp: Stamp{3, 2}, Here: true, Stage: Serving}
	for i, x := range []struct {
		event Event
		deeds string
		may   bool
	}{
		{StoodStill{}, "[shut vouch]", false},
		{Unvouched{}, "[read]", false},
		{Unreadable{}, "[open]", false},
		{Due{}, "[vouch]", false},
		{Vouched{}, "[open read]", true},
		{Unreadable{}, "[open]", true},
		{Due{}, "[read]", true},
		{StoodStill{}, "[shut vouch]", false},
		{Unvouched{}, "[read]", false},
		{Unreadable{}, "[open]", false},
		{StoodStill{}, "[shut vouch]", false},
		{Vouched{}, "[open read]", true},
		{mine, "[keep open commit]", true},
		{Unwritten{}, "[]", true},
		{Due{}, "[read]", true},
		{mine, "[keep open commit]", true},
		{Written{}, "[open keep]", true},
		{StoodStill{}, "[shut vouch]", false},
	} {
		var deeds []Deed
		if s, deeds = Step(s, x.event); fmt.Sprint(deeds) != x.deeds || s.MayAcknowledge(false) != x.may {
			t.Fatalf("step %d, %T: %v, may acknowledge %t, in stage %s", i, x.event, deeds, s.MayAcknowledge(false), s.Stage)
		}
	}
}
