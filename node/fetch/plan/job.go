package plan

import (
	"cmp"
	"slices"
	"time"
)

// rung is one kind of source.
type rung uint8

const (
	askLead rung = iota
	askRanks
	waitFarm
	askHolders
	waitSwarm
	askSwarmHolders
	askSwarmLead
	readOrigin
	waitLast
	askAnyone
	giveUp
)

// ladder returns the rungs of a depth, in the order in which they are climbed. A
// request from outside that should have gone to a third farm goes there before
// this farm spends a read of the origin on it; one that was passed on goes no
// farther.
func ladder(d Depth) []rung {
	switch d {
	case Own, Led:
		return []rung{askLead, askRanks, waitFarm, askHolders, waitSwarm, askSwarmHolders, askSwarmLead, readOrigin, waitLast, askAnyone, giveUp}
	case Outer:
		return []rung{waitFarm, askHolders, askSwarmLead, askLead, askRanks, readOrigin, askAnyone, giveUp}
	case OuterPassed:
		return []rung{askLead, askRanks, waitFarm, askHolders, readOrigin, askAnyone, giveUp}
	}
	return []rung{askRanks, waitFarm, askHolders, askSwarmHolders, readOrigin, giveUp} // Last
}

// Job is the way of one run, or of the part of it that is missing. Not safe for
// concurrent use.
type Job struct {
	cfg   Config
	at    int // on the ladder
	count int // asked on this rung

	asked map[Peer]bool // asked for what they have
	fetch map[Peer]bool // asked to bring it in

	patience patience
	now      time.Time
	last     time.Time // when something came from anyone, or the start
	hedgeAt  time.Time // when to think of a hedge next
	under    []*source // under way
	waiting  bool      // a wait is under way
	wary     bool      // members were found to stall lately
	passing  bool      // climbs past members that are asked beside
	besides  int
	reads    int
	over     bool

	refers int
	led    bool // a lead has tried all that it could
	gone   bool // by the word of the origin
	words  int  // of members that have that word,
	others int  // and of those that could not bring it in for another reason
	maybe  bool // a source has failed that may come right
	tried  []Tried
}

// New returns a job that waits for Start.
func New(cfg Config) *Job {
	return &Job{
		cfg: cfg, patience: patienceOf(cfg.Hurry),
		asked: map[Peer]bool{cfg.Self: true, cfg.From: true}, fetch: map[Peer]bool{cfg.Self: true, cfg.From: true},
	}
}

// Step takes an event and returns what to do. After Done or Fail it returns
// nothing: answers that are late change nothing.
func (j *Job) Step(e Event) []Action {
	if j.over {
		return nil
	}
	j.now, j.wary = e.Now, e.View.Wary
	j.brought(e.Came)
	switch e.Kind {
	case Start:
		j.last, j.hedgeAt = e.Now, e.Now.Add(HedgeAfter)
	case Waited:
		j.waiting = false
	case Woke:
		if !e.Missing {
			return j.finish(nil)
		}
	case Answered, OriginEnded:
		s := j.ended(e.Peer)
		if !e.Missing {
			return j.finish(s)
		}
		if s == nil { // it was dropped
			break
		}
		j.passing = false
		j.note(e.Peer, e.Why, e.Nowhere)
		j.gone = j.gone || e.Never && e.Kind == OriginEnded
		switch {
		case !s.act.Fetch:
		case e.Nowhere:
			j.words++
		default:
			j.others++
		}
		j.maybe = j.maybe || e.Why != "" && !e.Never
		if acts := j.referred(s, e); acts != nil {
			return acts
		}
		j.answered(s, e)
	}
	return j.onward(e.View)
}

func (j *Job) note(source Peer, why string, nowhere bool) {
	absent := "absent"
	if nowhere {
		absent = "the origin has told it that it is gone, or damaged"
	}
	if len(j.tried) < triedMax {
		j.tried = append(j.tried, Tried{source, cmp.Or(why, absent)})
	}
}

// referred follows a referral, or goes back to the member that gave one.
func (j *Job) referred(s *source, e Event) []Action {
	if s.again != nil {
		return j.ask(*s.again)
	}
	if e.Refer == "" || j.asked[e.Refer] || e.View.Aside[e.Refer] || j.refers >= refersMax {
		return nil
	}
	j.refers++
	j.asked[e.Refer] = true
	return j.begin(source{act: Action{Kind: Ask, Peer: e.Refer}, rung: s.rung, again: &s.act})
}

// answered leaves the rung of a lead that has answered that it could not: it has
// climbed the ladder itself, and one that takes its place would do no better.
func (j *Job) answered(s *source, e Event) {
	on := ladder(j.cfg.Depth)[s.rung]
	if !s.act.Fetch || e.Why != "" || e.Refer != "" || on != askLead && on != askSwarmLead {
		return
	}
	j.led = j.led || on == askLead && !s.act.Passed && !e.Nowhere // others are to say so too
	if s.rung == j.at {
		j.at++
		j.count = 0
	}
}

// hedge reads the origin beside a member that is slow, once, for a guest alone.
func (j *Job) hedge(v View) []Action {
	if !j.cfg.Guest || j.now.Before(j.hedgeAt) {
		return nil
	}
	j.hedgeAt = j.now.Add(HedgeAfter)
	if j.reads > 0 || !v.Origin || !v.HedgeBudget || !j.waiting && len(j.under) == 0 {
		return nil
	}
	return j.read(true)
}

func (j *Job) read(hedge bool) []Action {
	j.reads++
	return j.begin(source{act: Action{Kind: ReadOrigin, Hedge: hedge}, rung: j.at, beside: hedge})
}

// climb goes up until a rung has something to do.
func (j *Job) climb(v View) []Action {
	for {
		acts, stay := j.step(v)
		if acts != nil || stay {
			return acts
		}
		j.at++
		j.count = 0
	}
}

// step asks the rung for something to do; stay means to wait there for what is
// under way.
func (j *Job) step(v View) (acts []Action, stay bool) {
	switch ladder(j.cfg.Depth)[j.at] {
	case askLead:
		return j.askLead(v), false
	case askRanks:
		return j.askFirst(v, j.behind(v), nextRanks), false
	case waitFarm:
		return j.wait(WaitFarm, v.FarmSettled), false
	case askHolders:
		return j.askFirst(v, v.Holders, holdersAsked), false
	case waitSwarm:
		return j.wait(WaitSwarm, j.cfg.Hurry || v.SwarmSettled), false
	case askSwarmHolders:
		return j.askFirst(v, v.SwarmHolders, swarmHoldersAsked), false
	case askSwarmLead:
		return j.askSwarmLead(v), false
	case readOrigin:
		if r := j.reading(); r != nil {
			return nil, !r.passed
		}
		if !v.Origin || j.count > 0 || j.reads >= readsMax {
			return nil, false
		}
		j.count++
		return j.read(false), false
	case waitLast: // nobody else is left to ask: now a guest waits too
		return j.wait(WaitSwarm, v.SwarmSettled), false
	case askAnyone:
		return j.askAnyone(v), false
	}
	return j.giveUp(v)
}

// giveUp ends the job once nobody is left to ask and nobody under way.
func (j *Job) giveUp(v View) (acts []Action, stay bool) {
	if acts := j.askBeside(v); acts != nil || len(j.under) > 0 {
		return acts, true
	}
	if j.reads == 0 {
		j.note("", "not reachable from this node", false)
	}
	j.over = true
	return []Action{{Kind: Fail, Tried: j.tried, Final: !j.maybe && (j.gone || j.told())}}, false
}

// told reports whether a node that can't ask the origin has the word of enough members,
// or of all that there are.
func (j *Job) told() bool {
	return j.reads == 0 && (j.words >= wordsEnough || j.words > 0 && j.others == 0)
}

// wait waits once, unless that is settled.
func (j *Job) wait(kind ActionKind, settled bool) []Action {
	if settled || j.count > 0 {
		return nil
	}
	j.count++
	j.waiting = true
	return []Action{{Kind: kind}}
}

// ranks are the live members in the order in which they lead the run; those that
// are passed over lead nothing.
func (j *Job) ranks(v View) []Peer {
	live := make([]Peer, 0, len(v.Farm))
	for _, p := range v.Farm {
		if !v.Aside[p] {
			live = append(live, p)
		}
	}
	return Rank(j.cfg.Key, live)
}

// behind are the ranks that follow this node's: whoever acts as the lead asks
// them, and leaves out those ahead, whom the asker found silent or does not see.
func (j *Job) behind(v View) []Peer {
	ranks := j.ranks(v)
	return ranks[slices.Index(ranks, j.cfg.Self)+1:]
}

// askLead asks the member that leads the run to bring it in; when it fails, the
// next one takes its place, and is not to turn to the failed one itself. A
// request that a member sent here is passed on, once, if another one leads in
// this node's view.
func (j *Job) askLead(v View) []Action {
	passed, ok := j.cfg.Depth.near()
	if !ok || j.count >= leadsAsked || passed && j.count > 0 {
		return nil
	}
	for _, p := range j.ranks(v) {
		if p == j.cfg.Self {
			return nil
		}
		if !j.fetch[p] && !j.isAsked(p) {
			return j.askFetch(p, passed || j.count > 0)
		}
	}
	return nil
}

// askSwarmLead asks the farm that leads the run among those that announced the
// root, this one included, through its announcers; when none of them answers, the
// farm that ranks next.
func (j *Job) askSwarmLead(v View) []Action {
	passed, ok := j.cfg.Depth.far()
	if !ok || j.count >= announcersAsked || passed && j.count > 0 {
		return nil
	}
	farms := []Peer{Peer(j.cfg.Farm)}
	for name := range v.Swarm {
		if name != j.cfg.Farm {
			farms = append(farms, Peer(name))
		}
	}
	for _, farm := range Rank(j.cfg.Key, farms) {
		switch string(farm) {
		case j.cfg.Farm:
			return nil
		case j.cfg.FromFarm: // it has asked us
			continue
		}
		for _, p := range v.Swarm[string(farm)] {
			if !j.fetch[p] && !v.Aside[p] && !j.isAsked(p) {
				return j.askFetch(p, passed)
			}
		}
	}
	return nil
}

// askAnyone is the rung of a node that can't read the origin, or where that
// failed: whoever may be able to is asked to bring the run in, those first that
// could lately. Where a lead has asked the farm, it is not asked again.
func (j *Job) askAnyone(v View) []Action {
	if j.count >= anyoneAsked || j.words >= wordsEnough {
		return nil
	}
	if _, ok := j.cfg.Depth.near(); ok && !j.led {
		for _, list := range [][]Peer{v.Providers, j.ranks(v)} {
			for _, p := range list {
				if !j.fetch[p] && !v.Aside[p] && !j.isAsked(p) {
					return j.askFetch(p, true)
				}
			}
		}
	}
	if _, ok := j.cfg.Depth.far(); ok {
		farms := make([]Peer, 0, len(v.Swarm))
		for name := range v.Swarm {
			farms = append(farms, Peer(name))
		}
		for _, farm := range Rank(j.cfg.Key, farms) {
			for _, p := range v.Swarm[string(farm)] {
				if !j.fetch[p] && !v.Aside[p] && !j.isAsked(p) && string(farm) != j.cfg.FromFarm {
					return j.askFetch(p, true)
				}
			}
		}
	}
	return nil
}

// askFirst asks the first few of a list for what they have. A climb that passes
// members over leaves them to be asked beside.
func (j *Job) askFirst(v View, list []Peer, most int) []Action {
	if j.count >= most || j.passing {
		return nil
	}
	for _, p := range list {
		if !j.asked[p] && !v.Aside[p] {
			j.count++
			return j.ask(Action{Kind: Ask, Peer: p})
		}
	}
	return nil
}

// isAsked reports whether a member is being asked.
func (j *Job) isAsked(p Peer) bool {
	return slices.ContainsFunc(j.under, func(s *source) bool { return s.act.Kind == Ask && s.act.Peer == p })
}

func (j *Job) askFetch(p Peer, passed bool) []Action {
	j.count++
	return j.ask(Action{Kind: Ask, Peer: p, Fetch: true, Passed: passed})
}

func (j *Job) ask(a Action) []Action {
	j.asked[a.Peer] = true
	j.fetch[a.Peer] = j.fetch[a.Peer] || a.Fetch
	return j.begin(source{act: a, rung: j.at})
}
