package plan

import (
	"slices"
	"time"
)

const (
	// agreeing is how many leads of a name must have read the same at the origin for this
	// node to take their word: one that lies passes nothing off. They are the first two of
	// leadsAsked; the third follows one that fails, so three members of a farm read a name
	// at most.
	agreeing = 2
	// LookBeside is how long a lead may take until the next one is asked beside it: longer
	// than an origin that is well takes, as the next one reads there once more.
	LookBeside = time.Second
	// lookMax is how long leads are waited for where there is no other to ask: a slow
	// origin is slow for this node as well.
	lookMax = 2 * LookBeside
)

// Sight is what is at the origin under a name: nothing, which is the zero Sight, or a
// version, and which one of those that were given that number.
type Sight struct {
	Version uint64
	Commit  [16]byte
}

// Look is the way of one look for a name, which its leads in the farm read at the origin
// for all that ask them; where they fail, or contradict each other, this node reads it
// itself. It takes Start, Answered, and Woke each LookBeside. Ask asks a lead, which is to
// read anew if it knows of nothing as late as Version. ReadOrigin and Done end the look:
// the latter says that what Peer has answered counts, as others have answered the same.
type Look struct {
	m     *Member
	name  string
	left  []Peer // to be asked
	asked []*lead
	over  bool
}

// lead is one that was asked.
type lead struct {
	peer  Peer
	since time.Time
	under bool   // under way
	saw   *Sight // nil while it has not answered, and where it could not
	told  bool   // of a later version than its own
}

// Look returns a look for a name that waits for Start.
func (m *Member) Look(name string) *Look { return &Look{m: m, name: name} }

func (l *Look) step(now time.Time, e Event) []Action {
	if l.over {
		return nil
	}
	switch e.Kind {
	case Start:
		order := l.m.names.order(l.name)
		for _, place := range order[:min(len(order), leadsAsked)] {
			if p := l.m.names.members[place]; p == l.m.self || !l.m.passes(p, now, false) {
				l.left = append(l.left, p)
			}
		}
	case Answered:
		i := slices.IndexFunc(l.asked, func(a *lead) bool { return a.peer == e.Peer })
		l.asked[i].under, l.asked[i].saw = false, e.Saw
		if e.Why != "" {
			l.m.Fail(e.Peer, now)
		} else {
			l.m.Work(e.Peer, now)
		}
	}
	best, agree := l.latest()
	if agree >= agreeing {
		l.over = true
		return []Action{{Kind: Done, Peer: best.peer}}
	}
	acts := l.ask(now, best, agree)
	if len(acts) == 0 && !slices.ContainsFunc(l.asked, func(a *lead) bool { return a.under && now.Sub(a.since) < lookMax }) {
		acts = []Action{{Kind: ReadOrigin}}
	}
	l.over = len(acts) > 0 && acts[0].Kind == ReadOrigin
	return acts
}

// latest returns the latest of the answers, and how many are the same; where they
// contradict each other, of that version the one that most have given.
func (l *Look) latest() (best *lead, agree int) {
	for _, a := range l.asked {
		if a.saw == nil || best != nil && a.saw.Version < best.saw.Version {
			continue
		}
		same := 0
		for _, b := range l.asked {
			if b.saw != nil && *b.saw == *a.saw {
				same++
			}
		}
		if best == nil || a.saw.Version > best.saw.Version || same > agree {
			best, agree = a, same
		}
	}
	return best, agree
}

// ask asks those again that have missed the latest version, as it was written meanwhile,
// mostly, and as many more as are to agree with it. This node is one of them in its turn:
// then it needs no other.
func (l *Look) ask(now time.Time, best *lead, agree int) (acts []Action) {
	awaited := 0
	for _, a := range l.asked {
		if a.saw != nil && a.saw.Version < best.saw.Version && !a.told {
			acts = append(acts, l.send(a, now, best.saw.Version))
			a.told = true
		}
		if a.under && now.Sub(a.since) < LookBeside {
			awaited++
		}
	}
	next := l.left[:min(len(l.left), max(0, agreeing-agree-awaited))]
	l.left = l.left[len(next):]
	if slices.Contains(next, l.m.self) {
		return []Action{{Kind: ReadOrigin}}
	}
	for _, p := range next {
		a := &lead{peer: p}
		l.asked = append(l.asked, a)
		acts = append(acts, l.send(a, now, 0))
	}
	return acts
}

func (l *Look) send(a *lead, now time.Time, version uint64) Action {
	a.since, a.under, a.saw = now, true, nil
	return Action{Kind: Ask, Peer: a.peer, Version: version}
}
