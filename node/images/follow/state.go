package follow

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// fetchesMax is how many images a node fetches for its names at once: where one waits
	// for a slow lead the other goes on, and a guest has few to pass.
	fetchesMax = 2
	// windowEach is how much later the last node begins for each member of the mesh, and
	// windowMax how much at most. Nodes that see a name change at once are spread so far
	// that those before have what those after ask for, and 10,000 begin in two minutes.
	windowEach, windowMax = 50 * time.Millisecond, 2 * time.Minute
	// retryMin and retryMax bound the time to the next try of what has failed: it doubles.
	retryMin, retryMax = 5 * time.Second, 5 * time.Minute
)

// Delay is how long after it has seen that a name stands for another version a node begins
// to fetch it: spread over the nodes by chance, and the same however often it is asked.
// members is how many are in the mesh.
func Delay(node, name string, version uint64, members int) time.Duration {
	return time.Duration(float64(min(windowMax, time.Duration(members)*windowEach)) * chance(node, name, version))
}

// chance is from 0 to 1.
func chance(node, name string, version uint64) float64 {
	sum := content.Sum(fmt.Appendf(nil, "%s\x00%s\x00%d", node, name, version))
	return float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)
}

// Target is what a name that is followed stands for.
type Target struct {
	Name    string
	Kind    content.Kind
	Version uint64
	Root    content.CID
	// Bytes is what its chunks take in a cache at most.
	Bytes int64
	// Rank is the place of the first pattern that the name matches: what comes first is
	// kept first where there is no room for all.
	Rank int
}

// Phase is how far a name is.
type Phase string

// The phases. A name of which something is missing is Waiting before it is Fetching.
const (
	Waiting  Phase = "waiting"
	Fetching Phase = "fetching"
	Warm     Phase = "warm"
	Failed   Phase = "failed"
	NoRoom   Phase = "no room"
)

// Standing says how a name that is followed stands on this node.
type Standing struct {
	Name    string           `json:"name"`
	Kind    content.Kind     `json:"kind"`
	Version uint64           `json:"version"`
	State   Phase            `json:"state" enum:"waiting,fetching,warm,failed,no room"`
	Done    int64            `json:"done" doc:"bytes that are here, of this try"`
	Total   int64            `json:"total" doc:"bytes, at most"`
	Bytes   map[string]int64 `json:"bytes,omitempty" doc:"what was brought in, by source"`
	Why     string           `json:"why,omitempty" doc:"why it has failed, or what there is no room for"`
	Next    time.Time        `json:"next,omitzero" doc:"when it is fetched, or tried again"`
	Older   bool             `json:"older,omitempty" doc:"an older version is whole here, and kept until this one is"`
}

// EventKind is the kind of an Event.
type EventKind uint8

// The kinds.
const (
	// Stands says what a name stands for.
	Stands EventKind = iota
	// Gone says that a name was deleted.
	Gone
	// Looked says that all names were looked at.
	Looked
	// Told says that a name is wanted now.
	Told
	// Moved says that some of what a name stands for is here, and came from Source.
	Moved
	// Ended ends a Fetch.
	Ended
	// Woke says that it is Next.
	Woke
)

// Event is what happened.
type Event struct {
	Kind EventKind
	// Target of Stands, Moved and Ended; its Name alone of Gone and Told.
	Target Target
	Source string
	Bytes  int64
	// Full and Why say of Ended that there is no room for it, or why else it has failed.
	Full bool
	Why  string
	// Members are in the mesh, and Room is what may be kept of what is followed, of Looked.
	Members int
	Room    int64
}

// ActionKind is the kind of an Action.
type ActionKind uint8

// The kinds.
const (
	// Fetch keeps what a name stands for from now on, and fetches what is missing;
	// answered by Ended.
	Fetch ActionKind = iota
	// Stop the Fetch of a Target; it need not be answered.
	Stop
	// Release lets a root be evicted.
	Release
)

// Action is what the caller is to do next, one after the other.
type Action struct {
	Kind   ActionKind
	Target Target
	Root   content.CID
}

// State is what a node knows of the names that it follows. Not safe for concurrent use.
type State struct {
	node    string
	members int
	room    int64
	looked  bool
	names   map[string]*entry
	kept    map[content.CID]bool // by the caller
	found   map[content.CID]bool // of these, what an earlier run has kept, and no name is known to stand for
}

type entry struct {
	Target
	phase Phase
	due   time.Time
	tries int
	why   string
	done  int64
	bytes map[string]int64
	whole content.CID // what it stood for last that is whole here
}

// New returns the State of a node that keeps these roots from an earlier run. node tells
// it from others.
func New(node string, kept []content.CID) *State {
	s := &State{node: node, members: 1, names: map[string]*entry{}, kept: map[content.CID]bool{}, found: map[content.CID]bool{}}
	for _, root := range kept {
		s.kept[root], s.found[root] = true, true
	}
	return s
}

// Step takes an event and returns what to do.
func (s *State) Step(now time.Time, e Event) (acts []Action) {
	n := s.names[e.Target.Name]
	switch e.Kind {
	case Stands:
		acts = s.stands(now, n, e.Target)
	case Gone:
		if n != nil {
			acts = n.stop()
			delete(s.names, e.Target.Name)
		}
	case Looked:
		grown := e.Room > s.room
		s.members, s.room, s.looked = e.Members, e.Room, true
		if grown {
			s.tryAgain(now)
		}
	case Told:
		if n != nil && n.phase != Fetching {
			n.phase, n.due = Waiting, now
		}
	case Moved:
		if n != nil && n.phase == Fetching && n.Root == e.Target.Root {
			n.done += e.Bytes
			n.bytes[e.Source] += e.Bytes
		}
		return nil
	case Ended:
		if n == nil || n.phase != Fetching || n.Root != e.Target.Root {
			return nil // it was stopped
		}
		if n.ended(now, s.node, e); e.Full && !s.needed()[n.Root] { // which makes no room for others
			delete(s.kept, n.Root)
			acts = []Action{{Kind: Release, Root: n.Root}}
		}
	}
	acts = append(acts, s.release(now)...)
	return append(acts, s.fetch(now)...)
}

func (s *State) stands(now time.Time, n *entry, t Target) (acts []Action) {
	if n == nil {
		n = new(entry)
		s.names[t.Name] = n
	}
	same := n.Root == t.Root
	if t.Version < n.Version {
		return nil
	}
	if !same {
		acts = n.stop()
	}
	if n.Target = t; same {
		return nil
	}
	n.phase, n.due, n.tries, n.why = Waiting, now, 0, ""
	n.done, n.bytes = 0, map[string]int64{}
	if !s.kept[t.Root] {
		n.due = now.Add(Delay(s.node, t.Name, t.Version, s.members))
	}
	return acts
}

func (n *entry) stop() []Action {
	if n.phase != Fetching {
		return nil
	}
	return []Action{{Kind: Stop, Target: n.Target}}
}

func (n *entry) ended(now time.Time, node string, e Event) {
	n.why = e.Why
	switch {
	case e.Full:
		n.phase = NoRoom
	case e.Why != "":
		n.phase = Failed
		wait := min(retryMax, retryMin<<min(n.tries, 16))
		n.tries++
		n.due = now.Add(wait/2 + time.Duration(float64(wait/2)*chance(node, n.Name, n.Version)))
	default:
		n.phase, n.whole, n.tries = Warm, n.Root, 0
	}
}

// needed are the roots that names stand for, or did until what they stand for now is whole.
func (s *State) needed() map[content.CID]bool {
	out := make(map[content.CID]bool, len(s.names))
	for _, n := range s.names {
		out[n.whole] = true
		out[n.Root] = out[n.Root] || n.phase != NoRoom
	}
	return out
}

// settled reports whether all that there is room for is here: no older version of it is
// needed.
func (s *State) settled() bool {
	for _, n := range s.names {
		if n.phase != Warm && n.phase != NoRoom {
			return false
		}
	}
	return s.looked
}

// release lets go what is not needed any more. Then there may be room for other names.
func (s *State) release(now time.Time) (acts []Action) {
	settled, needed := s.settled(), s.needed()
	for _, root := range slices.SortedFunc(maps.Keys(s.kept), func(a, b content.CID) int { return cmp.Compare(string(a[:]), string(b[:])) }) {
		if needed[root] || s.found[root] && !settled {
			continue
		}
		delete(s.kept, root)
		delete(s.found, root)
		acts = append(acts, Action{Kind: Release, Root: root})
	}
	if len(acts) > 0 {
		s.tryAgain(now)
	}
	return acts
}

// tryAgain has what there was no room for tried once more.
func (s *State) tryAgain(now time.Time) {
	for _, n := range s.names {
		if n.phase == NoRoom {
			n.phase, n.due = Waiting, now
		}
	}
}

// fetch begins what is due, as many as may be at once. Where there is no room for all the
// first ones come first, one at a time, so that nodes keep the same.
func (s *State) fetch(now time.Time) (acts []Action) {
	order := s.order()
	running, all, roots := 0, int64(0), map[content.CID]bool{}
	for _, n := range order {
		if n.phase == Fetching {
			running++
		}
		if !roots[n.Root] {
			all += n.Bytes
		}
		roots[n.Root] = true
	}
	tight := all > s.room
	for _, n := range order {
		if running == fetchesMax || tight && running > 0 {
			break
		}
		if n.phase != Waiting && n.phase != Failed {
			continue
		}
		if n.due.After(now) {
			if tight && n.phase == Waiting {
				break
			}
			continue
		}
		n.phase, n.done, n.bytes = Fetching, 0, map[string]int64{}
		s.kept[n.Root] = true
		delete(s.found, n.Root)
		running++
		acts = append(acts, Action{Kind: Fetch, Target: n.Target})
	}
	return acts
}

func (s *State) order() []*entry {
	return slices.SortedFunc(maps.Values(s.names), func(a, b *entry) int { return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Name, b.Name)) })
}

// Next is when to tell it that it Woke; zero for never.
func (s *State) Next(now time.Time) (at time.Time) {
	for _, n := range s.names {
		if (n.phase == Waiting || n.phase == Failed) && n.due.After(now) && (at.IsZero() || n.due.Before(at)) {
			at = n.due
		}
	}
	return at
}

// Versions returns the names that are followed, with the version of each.
func (s *State) Versions() map[string]uint64 {
	out := make(map[string]uint64, len(s.names))
	for name, n := range s.names {
		out[name] = n.Version
	}
	return out
}

// Standing returns how a name stands; false if it is not followed.
func (s *State) Standing(name string) (Standing, bool) {
	n := s.names[name]
	if n == nil {
		return Standing{}, false
	}
	v := Standing{Name: n.Name, Kind: n.Kind, Version: n.Version, State: n.phase, Done: n.done, Total: n.Bytes, Bytes: maps.Clone(n.bytes), Why: n.why, Older: !n.whole.IsHole() && n.whole != n.Root}
	if n.phase == Waiting || n.phase == Failed {
		v.Next = n.due
	}
	return v, true
}

// Standings returns how all names stand, those that are kept first coming first.
func (s *State) Standings() (out []Standing) {
	for _, n := range s.order() {
		v, _ := s.Standing(n.Name)
		out = append(out, v)
	}
	return out
}
