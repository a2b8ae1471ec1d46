// Package plan decides where a run comes from: whom to ask, in which order, when
// to go to the origin, when to give up. It has no clock, no goroutine and no I/O:
// a caller feeds events to a Job and carries out the actions that it answers
// with.
//
// The ladder of a run that this node's cache does not hold: the run's lead in
// the farm, chosen by rendezvous hashing; for the lead itself, the members that
// rank next (after a join, the second is the old lead), the members whose
// bitmaps show the run, then outside: members of other farms that show it, the
// lead among the farms that announced the root, and the origin.
//
// Requests carry two facts that keep them from going in circles: whether the one
// asked should bring in what it lacks, and whether it may pass the request on.
package plan

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

// Peer names a member.
type Peer string

const (
	// nextRanks is how many members behind the lead are asked whether they hold a
	// run before anyone outside is: a join or a leave shifts the ranks by one.
	nextRanks = 2
	// holdersAsked bounds the members asked because their bitmaps show the run.
	holdersAsked = 3
	// announcersAsked bounds the members asked of the farm that leads outside.
	announcersAsked = 2
	// SwarmWait is how long prefetch waits for announcements of a cold root; a
	// guest does not.
	SwarmWait = 500 * time.Millisecond
	// HedgeAfter is how long a guest's read may hang before it may go to the
	// origin beside.
	HedgeAfter = time.Second
)

// Rank orders members by rendezvous hashing: the first leads the run of that
// key. Every member with the same list computes the same order, and a join or
// leave moves only the runs of the one that came or went.
func Rank(key string, members []Peer) []Peer {
	type ranked struct {
		peer   Peer
		weight uint64
	}
	all := make([]ranked, len(members))
	for i, m := range members {
		sum := blake3.Sum256([]byte(key + "\x00" + string(m)))
		all[i] = ranked{m, binary.BigEndian.Uint64(sum[:])}
	}
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), strings.Compare(string(a.peer), string(b.peer)))
	})
	out := make([]Peer, len(all))
	for i, r := range all {
		out[i] = r.peer
	}
	return out
}

// View is what this node knows when an event happens.
type View struct {
	// Farm are the live members of this farm, this node included.
	Farm []Peer
	// Holders are members of this farm whose bitmaps show what is missing.
	Holders []Peer
	// Swarm are members of other farms that announced the root, by farm, in the
	// order in which they were found.
	Swarm map[string][]Peer
	// SwarmHolders are those whose bitmaps show what is missing.
	SwarmHolders []Peer
	// SwarmSettled is true once the search for announcements has had its time.
	SwarmSettled bool
	// Bad are members that failed or were silent lately, or lied: passed over.
	Bad map[Peer]bool
	// Origin is true when this node can read the origin now.
	Origin bool
	// HedgeBudget is true when the budget for hedging has room for the run.
	HedgeBudget bool
}

// Asked says on whose behalf a job runs.
type Asked uint8

const (
	// ByGuest: this node's guest waits for it.
	ByGuest Asked = iota
	// ByPrefetch: this node wants it, and nobody waits.
	ByPrefetch
	// ByMember: a member of this farm asked this node to bring it in.
	ByMember
	// ByStranger: a member of another farm did.
	ByStranger
)

// Config says what a Job is about.
type Config struct {
	// Key of the run, for Rank.
	Key string
	// Self is this node, and Farm its farm's name.
	Self Peer
	Farm string
	// Asked says for whom; From is the member that asked, if one did.
	Asked Asked
	From  Peer
	// Passed is true when the request was passed on already.
	Passed bool
	// Hurry is true when a guest is blocked, here or at the member that asked.
	Hurry bool
}

// Event is what happened. View is as of then.
type Event struct {
	Kind EventKind
	View View
	// Peer and Missing are of Answered: who answered, and whether something is
	// still missing.
	Peer    Peer
	Missing bool
	// Refer names a member to ask instead, of Answered.
	Refer Peer
	// Why is the reason of a failure, of Answered and OriginEnded.
	Why string
}

// EventKind is the kind of an Event.
type EventKind uint8

// The kinds.
const (
	// Start begins the job.
	Start EventKind = iota
	// Answered ends an Ask.
	Answered
	// OriginEnded ends a ReadOrigin; Missing tells whether it failed.
	OriginEnded
	// SwarmWaited ends a WaitSwarm.
	SwarmWaited
	// Hung says that HedgeAfter has passed since the start.
	Hung
)

// Action is what the caller is to do next.
type Action struct {
	Kind ActionKind
	// Peer is whom to ask. Fetch tells it to bring in what it lacks, Passed that
	// it must not pass the request on.
	Peer   Peer
	Fetch  bool
	Passed bool
	// Tried says what was tried, of Fail.
	Tried []string
}

// ActionKind is the kind of an Action.
type ActionKind uint8

// The kinds.
const (
	// Ask a member; answered by Answered.
	Ask ActionKind = iota
	// ReadOrigin reads the run there; answered by OriginEnded.
	ReadOrigin
	// WaitSwarm waits SwarmWait for announcements; answered by SwarmWaited.
	WaitSwarm
	// Done: nothing is missing.
	Done
	// Fail: every source was tried.
	Fail
)

// step is a rung of the ladder; they are climbed in order.
type step uint8

const (
	askLead step = iota
	askRanks
	askHolders
	waitSwarm
	askSwarmHolders
	askSwarmLead
	readOrigin
	askAnyone
	giveUp
)

// Job is the way of one run, or of the part of it that is missing. Not safe for
// concurrent use.
type Job struct {
	cfg    Config
	step   step
	asked  map[Peer]bool // asked for what they have
	fetch  map[Peer]bool // asked to bring it in
	count  int           // asked on this rung
	origin int           // reads of the origin begun
	open   int           // actions without their answer
	ended  bool
	tried  []string
}

// New returns a job that waits for Start.
func New(cfg Config) *Job {
	return &Job{cfg: cfg, asked: map[Peer]bool{cfg.Self: true, cfg.From: true}, fetch: map[Peer]bool{cfg.Self: true, cfg.From: true}}
}

// Step takes an event and returns what to do. After Done or Fail it returns
// nothing: answers that are late change nothing.
func (j *Job) Step(e Event) []Action {
	if j.ended {
		return nil
	}
	switch e.Kind {
	case Answered:
		j.open--
		if e.Missing {
			j.note(string(e.Peer), e.Why)
		}
		if e.Refer != "" && e.Missing && !j.asked[e.Refer] {
			return j.ask(e.Refer)
		}
	case OriginEnded:
		j.open--
		if e.Missing {
			j.note("origin", e.Why)
		}
	case SwarmWaited:
		j.open--
	case Hung:
		return j.hedge(e.View)
	}
	if (e.Kind == Answered || e.Kind == OriginEnded) && !e.Missing {
		j.ended = true
		return []Action{{Kind: Done}}
	}
	if j.open > 0 { // a hedge has failed, or what it was beside
		return nil
	}
	return j.climb(e.View)
}

func (j *Job) note(source, why string) { j.tried = append(j.tried, source+": "+cmp.Or(why, "absent")) }

// hedge reads the origin beside a peer that is slow, once, for a guest alone.
func (j *Job) hedge(v View) []Action {
	if j.cfg.Asked != ByGuest || j.origin > 0 || !v.Origin || !v.HedgeBudget || j.open == 0 {
		return nil
	}
	j.origin++
	j.open++
	return []Action{{Kind: ReadOrigin}}
}

// climb goes up until a rung has something to do.
func (j *Job) climb(v View) []Action {
	for {
		if acts := j.rung(v); acts != nil {
			return acts
		}
		j.step++
		j.count = 0
	}
}

func (j *Job) rung(v View) []Action {
	switch j.step {
	case askLead:
		return j.askLead(v)
	case askRanks:
		return j.askFirst(v, j.ranks(v), nextRanks)
	case askHolders:
		return j.askFirst(v, v.Holders, holdersAsked)
	case waitSwarm:
		if j.cfg.Hurry || v.SwarmSettled || j.count > 0 {
			return nil
		}
		j.count++
		j.open++
		return []Action{{Kind: WaitSwarm}}
	case askSwarmHolders:
		return j.askFirst(v, v.SwarmHolders, holdersAsked)
	case askSwarmLead:
		return j.askSwarmLead(v)
	case readOrigin:
		if !v.Origin || j.origin > 0 {
			return nil
		}
		j.origin++
		j.open++
		return []Action{{Kind: ReadOrigin}}
	case askAnyone:
		return j.askAnyone(v)
	}
	j.ended = true
	if !v.Origin && j.origin == 0 {
		j.note("origin", "not reachable from this node")
	}
	return []Action{{Kind: Fail, Tried: j.tried}}
}

// ranks are the live members in the order in which they lead the run; those that
// are passed over lead nothing.
func (j *Job) ranks(v View) []Peer {
	return slices.DeleteFunc(Rank(j.cfg.Key, v.Farm), func(p Peer) bool { return v.Bad[p] })
}

// askLead asks the member that leads the run to bring it in. A request that a
// member sent here is passed on, once, if another one leads in this node's view.
// When a lead has failed, the next one takes its place.
func (j *Job) askLead(v View) []Action {
	if j.cfg.Passed {
		return nil
	}
	passing := j.cfg.Asked == ByMember || j.cfg.Asked == ByStranger
	for _, p := range j.ranks(v) {
		if p == j.cfg.Self {
			return nil
		}
		if !j.fetch[p] {
			if passing && j.count > 0 {
				return nil
			}
			j.count++
			return j.askFetch(p, passing)
		}
	}
	return nil
}

// askSwarmLead asks the farm that leads the run among those that announced the
// root, this one included, through its announcers. Only a request that began in
// this farm goes there: a lead of a lead could be oneself.
func (j *Job) askSwarmLead(v View) []Action {
	if j.cfg.Asked == ByStranger {
		return nil
	}
	farms := []Peer{Peer(j.cfg.Farm)}
	for name := range v.Swarm {
		if name != j.cfg.Farm {
			farms = append(farms, Peer(name))
		}
	}
	lead := Rank(j.cfg.Key, farms)[0]
	if string(lead) == j.cfg.Farm && v.Origin {
		return nil
	}
	for _, p := range v.Swarm[string(lead)] {
		if j.count < announcersAsked && !j.fetch[p] && !v.Bad[p] {
			j.count++
			return j.askFetch(p, false)
		}
	}
	return nil
}

// askAnyone is the rung of a node that can't read the origin, or where that
// failed: whoever may be able to is asked to bring the run in.
func (j *Job) askAnyone(v View) []Action {
	if j.cfg.Asked == ByStranger || j.cfg.Passed {
		return nil
	}
	candidates := j.ranks(v)
	farms := make([]string, 0, len(v.Swarm))
	for name := range v.Swarm {
		farms = append(farms, name)
	}
	slices.Sort(farms)
	for _, name := range farms {
		candidates = append(candidates, v.Swarm[name]...)
	}
	for _, p := range candidates {
		if !j.fetch[p] && !v.Bad[p] && j.count < holdersAsked {
			j.count++
			return j.askFetch(p, true)
		}
	}
	return nil
}

// askFirst asks the first few of a list for what they have.
func (j *Job) askFirst(v View, list []Peer, most int) []Action {
	for _, p := range list {
		if j.count >= most {
			return nil
		}
		if !j.asked[p] && !v.Bad[p] {
			j.count++
			return j.ask(p)
		}
	}
	return nil
}

func (j *Job) ask(p Peer) []Action {
	j.asked[p] = true
	j.open++
	return []Action{{Kind: Ask, Peer: p}}
}

func (j *Job) askFetch(p Peer, passed bool) []Action {
	j.asked[p], j.fetch[p] = true, true
	j.open++
	return []Action{{Kind: Ask, Peer: p, Fetch: true, Passed: passed}}
}
