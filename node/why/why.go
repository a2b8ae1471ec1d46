// Package why keeps the slowest reads of a volume's guests of the last minutes, with what was
// tried for each, and says in words what they waited for. It fetches nothing.
package why

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// Slow is from when on a read is kept: many round trips of a LAN. What is faster nobody
	// asks about.
	Slow = 10 * time.Millisecond
	// Kept is how long reads are kept, and readsMax how many of a volume, the slowest: some
	// 100 KiB.
	Kept     = 10 * time.Minute
	readsMax = 64
	// stepsMax bounds what is kept of what was tried for a read: the first.
	stepsMax = 16
)

// What a step is; the first word is its verb.
const (
	Asked      = "asked"             // a member for what it has
	Led        = "asked to bring in" // a member that leads, or may read the origin
	ReadOrigin = "read the origin"   // in its turn, or beside a member that is slow
	WaitFarm   = "waited for the farm"
	WaitSwarm  = "waited for the swarm"
	WaitReads  = "waited for a read of the origin that was under way"
)

// Step is one thing that was tried, or waited for.
type Step struct {
	What    string    `json:"what" enum:"asked,asked to bring in,read the origin,waited for the farm,waited for the swarm,waited for a read of the origin that was under way"`
	Peer    peer.ID   `json:"peer,omitempty" doc:"who was asked"`
	Name    string    `json:"name,omitempty" doc:"what that member calls itself"`
	At      time.Time `json:"at"`
	Took    float64   `json:"took_seconds" doc:"0 while it is under way"`
	Outcome string    `json:"outcome,omitempty" doc:"as far as it is known"`
	Brought bool      `json:"brought,omitempty" doc:"something came of it"`
}

// source names whom a step waits for.
func (s Step) source() string {
	switch {
	case s.Peer != "":
		return cmp.Or(s.Name, s.Peer.String())
	case s.What == ReadOrigin:
		return "the origin"
	}
	return strings.TrimPrefix(s.What, "waited for ")
}

// Read is one that took long.
type Read struct {
	At     time.Time `json:"at" doc:"when it began"`
	Offset int64     `json:"offset" doc:"in the volume, bytes"`
	Length int       `json:"length"`
	Chunk  string    `json:"chunk,omitempty" doc:"CID of what it needed"`
	Took   float64   `json:"took_seconds" doc:"so far, of one under way"`
	Source string    `json:"source,omitempty" enum:"cache,farm,swarm,origin" doc:"where the bytes came from; absent while it is under way, or when it has failed"`
	Error  string    `json:"error,omitempty"`
	Steps  []Step    `json:"steps" doc:"what was tried, some of it maybe before the read, which joined it"`
}

func (r Read) end() time.Time { return after(r.At, r.Took) }

func after(t time.Time, seconds float64) time.Time {
	return t.Add(time.Duration(seconds * float64(time.Second)))
}

// With is the read with what of some traces was tried in its time.
func (r Read) With(tried ...*Trace) Read {
	for _, t := range tried {
		if t == nil {
			continue
		}
		t.mu.Lock()
		for _, s := range t.steps {
			if !s.At.After(r.end()) && (s.Took == 0 || after(s.At, s.Took).After(r.At)) && len(r.Steps) < stepsMax {
				r.Steps = append(r.Steps, s)
			}
		}
		t.mu.Unlock()
	}
	slices.SortStableFunc(r.Steps, func(a, b Step) int { return a.At.Compare(b.At) })
	return r
}

// Log keeps the slowest reads. The zero value is ready; safe for concurrent use.
type Log struct {
	mu    sync.Mutex // guards reads
	reads []Read     // the slowest first
}

// Note takes a read that was slow.
func (l *Log) Note(r Read) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(r.end())
	i, _ := slices.BinarySearchFunc(l.reads, r, func(a, b Read) int { return cmp.Compare(b.Took, a.Took) })
	l.reads = slices.Insert(l.reads, i, r)
	l.reads = l.reads[:min(len(l.reads), readsMax)]
}

func (l *Log) forget(now time.Time) {
	l.reads = slices.DeleteFunc(l.reads, func(r Read) bool { return now.Sub(r.At) > Kept })
}

// Slowest returns those kept, the slowest first.
func (l *Log) Slowest(now time.Time) []Read {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	return slices.Clone(l.reads)
}

// cause is what a read waited for the longest until the next thing was tried, for how long,
// and whence the bytes came, if that is another.
func (r Read) cause() (who, then string, waited time.Duration) {
	if who = "this node's own disk"; len(r.Steps) == 0 {
		return who, "", r.end().Sub(r.At)
	}
	for i, s := range r.Steps {
		until := r.end()
		if i+1 < len(r.Steps) {
			until = r.Steps[i+1].At
		}
		begun := s.At
		if begun.Before(r.At) {
			begun = r.At
		}
		if d := until.Sub(begun); d > waited {
			who, waited = s.source(), d
			if !s.Brought && s.Peer != "" {
				who += ", which brought nothing"
			}
		}
		if s.Brought || s.What == ReadOrigin && r.Source == "origin" {
			then = s.source()
		}
	}
	if then == who {
		then = ""
	}
	return who, then, waited
}

// Explain says in words what reads waited for: a line for those that waited for the same, most
// reads first.
func Explain(reads []Read) (lines []string) {
	type same struct{ who, then string }
	count, most := map[same]int{}, map[same]time.Duration{}
	var all []same
	for _, r := range reads {
		who, then, waited := r.cause()
		key := same{who, then}
		if count[key]++; count[key] == 1 {
			all = append(all, key)
		}
		most[key] = max(most[key], waited)
	}
	slices.SortStableFunc(all, func(a, b same) int { return cmp.Compare(count[b], count[a]) })
	for _, key := range all {
		line := fmt.Sprintf("%d of %d slow reads waited up to %s for %s", count[key], len(reads), most[key].Round(time.Millisecond), key.who)
		if key.then != "" {
			line += "; then the bytes came from " + key.then
		}
		lines = append(lines, line)
	}
	return lines
}
