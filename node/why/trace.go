package why

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

// Trace is what was tried for some bytes. A nil one notes nothing. Safe for concurrent use.
type Trace struct {
	mu    sync.Mutex // guards steps
	steps []Step
}

// TraceIf is a Trace where guests wait, or may come to, and nil where not.
func TraceIf(guests bool) *Trace {
	if !guests {
		return nil
	}
	return new(Trace)
}

// Action notes what the planner has tried.
func (t *Trace) Action(a plan.Action) {
	switch a.Kind {
	case plan.Ask:
		what := Asked
		if a.Fetch {
			what = Led
		}
		t.begin(Step{What: what, Peer: peer.ID(a.Peer)})
	case plan.Drop:
		t.note("asked", peer.ID(a.Peer), true, false, "given up, as nothing came for "+a.Quiet.Round(time.Millisecond).String())
	case plan.ReadOrigin:
		s := Step{What: ReadOrigin}
		if a.Hedge {
			s.Outcome = "beside a member that is slow"
		}
		t.begin(s)
	case plan.WaitFarm:
		t.begin(Step{What: WaitFarm})
	case plan.WaitSwarm:
		t.begin(Step{What: WaitSwarm})
	case plan.WaitReads:
		t.begin(Step{What: WaitReads})
	}
}

// Event notes what has become of it.
func (t *Trace) Event(e plan.Event) {
	switch e.Kind {
	case plan.Answered:
		outcome := e.Why
		if _, why, ok := strings.Cut(e.Why, ": "); ok && strings.HasPrefix(e.Why, "ask ") { // whom is said already
			outcome = why
		}
		if e.Refer != "" {
			outcome = "referred to " + peer.ID(e.Refer).String()
		}
		t.note("asked", peer.ID(e.Peer), true, false, outcome)
	case plan.OriginEnded:
		t.note("read", "", true, e.Why == "", e.Why)
	case plan.Waited:
		t.note("waited", "", true, false, "")
	}
}

// Queued notes the place that a member has given a request.
func (t *Trace) Queued(p peer.ID, position uint32) {
	t.note("asked", p, false, false, fmt.Sprintf("queued, position %d", position))
}

// Brought notes that something came from a member.
func (t *Trace) Brought(p peer.ID) {
	t.note("asked", p, false, true, "")
}

func (t *Trace) begin(s Step) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.At = time.Now(); len(t.steps) < stepsMax {
		t.steps = append(t.steps, s)
	}
}

// note adds to the latest step of a verb, of a member, what is known of it now.
func (t *Trace) note(verb string, p peer.ID, ended, brought bool, outcome string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range slices.Backward(t.steps) {
		s := &t.steps[i]
		if s.Peer != p || s.Took > 0 || !strings.HasPrefix(s.What, verb) {
			continue
		}
		s.Brought = s.Brought || brought
		if outcome != "" {
			s.Outcome = outcome
		}
		if ended {
			s.Took = max(time.Since(s.At), 1).Seconds()
		}
		return
	}
}

// Trail is what was tried for one read, by several jobs maybe.
type Trail struct {
	Began  time.Time
	traces []*Trace
}

// Tried notes that a read waits for what is tried there; a nil Trail notes nothing.
func (t *Trail) Tried(tr *Trace) {
	if t != nil && tr != nil && len(t.traces) < trailMax && !slices.Contains(t.traces, tr) {
		t.traces = append(t.traces, tr)
	}
}

// Of is a read with what was tried for it.
func (t *Trail) Of(r Read) Read { return r.With(t.traces...) }

// trailMax bounds the jobs of a read that are remembered: the map's, and some in vain.
const trailMax = 8

// InVain is the error of a climb that has failed: it says which sources were asked. What they
// failed with is of one of two kinds: content.ErrUnavailable, which may come right, or, where
// the climb is final, what the origin said of the bytes: content.ErrCorrupt or
// content.ErrNotFound.
func InVain(what string, a plan.Action, near []peer.ID, cause error) error {
	sources := []string{"cache: absent"}
	for i, t := range a.Tried {
		switch id := peer.ID(t.Peer); {
		case i == triedMax:
			sources = append(sources, fmt.Sprintf("and %d more", len(a.Tried)-triedMax))
		case i > triedMax:
		case t.Peer == "":
			sources = append(sources, "origin: "+t.Why)
		case slices.Contains(near, id):
			sources = append(sources, fmt.Sprintf("farm %s: %s", id, t.Why))
		default:
			sources = append(sources, fmt.Sprintf("swarm %s: %s", id, t.Why))
		}
	}
	category := content.ErrUnavailable
	switch {
	case !a.Final:
	case errors.Is(cause, content.ErrCorrupt):
		category = content.ErrCorrupt
	default:
		category = content.ErrNotFound
	}
	return fmt.Errorf("%s: %w: %s", what, category, strings.Join(sources, "; "))
}

// triedMax bounds how many sources an error names.
const triedMax = 8
