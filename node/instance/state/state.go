// Package state says what becomes of an instance: a state machine without I/O and without a clock, which the node's hub
// and its tests drive.
//
// An operation is a row of steps. Each is logged before it is begun, so that a node which was killed knows with which to go
// on; all of them may be done again. Nothing that holds the only copy of what a workload has written is removed before a
// record names another one.
package state

import (
	"fmt"
	"slices"

	"github.com/grangemesh/grange/origin/content"
)

// State is what an instance is in. Those that end in -ing are held by one operation.
type State string

// The states.
const (
	Unprovisioned  State = "unprovisioned" // nothing of it is here
	Provisioning   State = "provisioning"
	Provisioned    State = "provisioned" // it runs
	Hibernating    State = "hibernating"
	Hibernated     State = "hibernated" // it does not run, and what it has is here
	Waking         State = "waking"
	Deprovisioning State = "deprovisioning"
	Crashed        State = "crashed" // it has ended by itself
	Recovering     State = "recovering"
	Obliterating   State = "obliterating"
	// Orphaned is another node's by now; what it had here stays.
	Orphaned State = "orphaned"
)

// All returns the states.
func All() []State {
	return []State{Unprovisioned, Provisioning, Provisioned, Hibernating, Hibernated, Waking, Deprovisioning, Crashed, Recovering, Obliterating, Orphaned}
}

// Step is one part of an operation, and may be done again.
type Step string

// The steps.
const (
	Claim     Step = "claim"     // has the record name this node
	Hydrate   Step = "hydrate"   // makes the directory or the volume what the record names
	Reserve   Step = "reserve"   // a port
	Start     Step = "start"     // the workload
	Await     Step = "await"     // until it is ready
	Compact   Step = "compact"   // has the workload make itself small
	Stop      Step = "stop"      // the workload, if it runs
	Dehydrate Step = "dehydrate" // has the record name what the workload has written
	Release   Step = "release"   // has the record name nobody
	Forget    Step = "forget"    // deletes the record, and what it names is no more its
	Clear     Step = "clear"     // removes what is here
)

// Event is what happens.
type Event string

// The events: those that callers ask for, those that are seen, and how a step ended.
const (
	Provision   Event = "provision"
	Hibernate   Event = "hibernate"
	Wake        Event = "wake"
	Deprovision Event = "deprovision"
	Obliterate  Event = "obliterate"

	Exited Event = "exited" // the workload has ended by itself
	Steady Event = "steady" // it has run for long
	Idle   Event = "idle"   // nobody has used it for its time
	Due    Event = "due"    // the time has come to restart what has crashed, and to try again what has failed
	Fenced Event = "fenced" // the record names another node

	Done   Event = "done"
	Failed Event = "failed"
)

// Instance is one, as far as this package knows. It changes by On alone. The zero value is not provisioned.
type Instance struct {
	State State `json:"state"`
	// Left are the steps of the operation that holds it; the first is the one to do, or that is being done.
	Left []Step `json:"left,omitempty"`
	// From is what it was before, and To what it is after them.
	From State `json:"from,omitempty"`
	To   State `json:"to,omitempty"`
	// Undoing says that they take back an operation that has failed.
	Undoing bool `json:"undoing,omitempty"`
	// Then is what was asked for meanwhile: an end, which is always honoured.
	Then Event `json:"then,omitempty"`
	// Crashes is how often it has ended by itself, and restarts failed, since it ran for long: what a restart waits goes by
	// that. Tries is how often a step has failed that is tried until it is done.
	Crashes int `json:"crashes,omitempty"`
	Tries   int `json:"tries,omitempty"`
}

// operation is a row of steps from one state to another.
type operation struct {
	during State
	steps  []Step
	to     State
	undo   []Step // once a step has failed,
	back   State  // and what it is then; "" tries the step again until it is done
}

func operationOf(from State, e Event) (op operation, ok bool) {
	switch e {
	case Provision:
		op = operation{Provisioning, []Step{Claim, Hydrate, Reserve, Start, Await}, Provisioned, []Step{Stop, Release, Clear}, Unprovisioned}
		ok = from == Unprovisioned
	case Hibernate:
		op = operation{Hibernating, []Step{Stop}, Hibernated, nil, Provisioned}
		ok = from == Provisioned
	case Wake:
		op = operation{Waking, []Step{Reserve, Start, Await}, Provisioned, []Step{Stop}, Hibernated}
		ok = from == Hibernated
	case Deprovision, Idle:
		op = operation{Deprovisioning, []Step{Compact, Stop, Dehydrate, Release, Clear}, Unprovisioned, nil, ""}
		if ok = from == Provisioned || from == Hibernated || from == Crashed && e == Deprovision; from != Provisioned {
			op.steps = op.steps[1:]
		}
	case Due:
		op = operation{Recovering, []Step{Start, Await}, Provisioned, []Step{Stop}, Crashed}
		ok = from == Crashed
	case Obliterate:
		op = operation{Obliterating, []Step{Stop, Forget, Clear}, Unprovisioned, nil, ""}
		switch from {
		case Orphaned: // the record is another's
			op.steps = []Step{Stop, Clear}
		case Unprovisioned: // nothing runs
			op.steps = []Step{Forget, Clear}
		}
		ok = from == Provisioned || from == Hibernated || from == Crashed || from == Unprovisioned || from == Orphaned
	case Fenced:
		op = operation{Orphaned, []Step{Stop}, Orphaned, nil, ""}
		ok = from == Provisioned || from == Hibernated || from == Crashed
	}
	return op, ok
}

// IsStable reports whether no operation holds it.
func (i Instance) IsStable() bool { return len(i.Left) == 0 }

// On returns what becomes of an instance by an event. What is asked for and is so already changes nothing; what can't be
// done now is content.ErrConflict, and what is asked for a second time while it is under way is joined.
func (i Instance) On(e Event) (Instance, error) {
	if i.State == "" {
		i.State = Unprovisioned
	}
	switch {
	case e == Done || e == Failed:
		return i.ended(e == Done), nil
	case !i.IsStable():
		return i.meanwhile(e)
	case e == Exited && i.State == Provisioned:
		i.State, i.Crashes = Crashed, i.Crashes+1
		return i, nil
	case e == Steady:
		i.Crashes = 0
		return i, nil
	}
	if op, ok := operationOf(i.State, e); ok {
		return i.begin(op), nil
	}
	return i, i.refusal(e)
}

func (i Instance) begin(op operation) Instance {
	i.From, i.State, i.Left, i.To, i.Undoing, i.Tries = i.State, op.during, op.steps, op.to, false, 0
	return i
}

// refusal is why nothing is done about an event; nil where it asks for what is so, or for nothing.
func (i Instance) refusal(e Event) error {
	already := map[Event][]State{
		Provision: {Provisioned}, Hibernate: {Hibernated}, Wake: {Provisioned}, Deprovision: {Unprovisioned},
		Exited: {Unprovisioned, Hibernated, Crashed, Orphaned}, Idle: {Unprovisioned, Crashed, Orphaned}, Due: {Unprovisioned, Provisioned, Hibernated, Orphaned}, Fenced: {Unprovisioned, Orphaned},
	}
	switch {
	case slices.Contains(already[e], i.State):
		return nil
	case i.State == Orphaned:
		return fmt.Errorf("%w: another node has it; what is here stays until it is obliterated", content.ErrFenced)
	}
	if e == Provision && i.State == Hibernated {
		return fmt.Errorf("%w: it is %s; `grange instance wake` starts it", content.ErrConflict, i.State)
	}
	return fmt.Errorf("%w: it is %s", content.ErrConflict, i.State)
}

// meanwhile goes by what happens while an operation holds the instance.
func (i Instance) meanwhile(e Event) (Instance, error) {
	switch {
	case e == Exited, e == Steady, e == Idle, e == Due: // the step that waits for it, or stops it, finds out
		return i, nil
	case e == Fenced:
		i.Then = ""
		op, _ := operationOf(Provisioned, Fenced)
		return i.begin(op), nil
	case asked(i.State) == e && !i.Undoing, e == Deprovision && i.Then == Obliterate:
		i.Tries = 0 // what is asked for again is tried at once
		return i, nil
	case e == Obliterate, e == Deprovision && i.State != Obliterating:
		i.Then, i.Tries = e, 0
		return i, nil
	}
	return i, fmt.Errorf("%w: it is %s", content.ErrConflict, i.State)
}

// ended goes on behind a step.
func (i Instance) ended(well bool) Instance {
	if i.IsStable() {
		return i
	}
	if well {
		i.Left, i.Tries = i.Left[1:], 0
		return i.settled()
	}
	switch step := i.Left[0]; {
	case step == Compact: // it is larger then, and no more
		i.Left = i.Left[1:]
		return i
	case i.State == Obliterating && step == Stop: // nothing of it is gone
		if i.Left, i.To = nil, i.From; i.To == Provisioned {
			i.To = Crashed
		}
		return i.settled()
	}
	if i.State == Deprovisioning && i.Then == Obliterate { // what can't be put away need not be
		op, _ := operationOf(i.From, Obliterate)
		i.State, i.Then = i.From, ""
		return i.begin(op)
	}
	op, _ := operationOf(i.From, asked(i.State))
	if i.Undoing || op.back == "" {
		i.Tries++ // the step is tried again
		return i
	}
	if i.State == Recovering {
		i.Crashes++
	}
	i.Left, i.To, i.Undoing = op.undo, op.back, true
	return i.settled()
}

// settled is an instance after the last step, which begins with what was asked for meanwhile.
func (i Instance) settled() Instance {
	if len(i.Left) > 0 {
		return i
	}
	i.State, i.From, i.Left, i.To, i.Undoing = i.To, "", nil, "", false
	if e := i.Then; e != "" {
		i.Then = ""
		if op, ok := operationOf(i.State, e); ok {
			return i.begin(op)
		}
	}
	return i
}

// asked is the event whose operation holds an instance in a state.
func asked(s State) Event {
	return map[State]Event{Provisioning: Provision, Hibernating: Hibernate, Waking: Wake, Deprovisioning: Deprovision, Recovering: Due, Obliterating: Obliterate, Orphaned: Fenced}[s]
}
