package plan

import (
	"cmp"
	"slices"
	"time"
)

// rung is one kind of source.
type rung uint8

const (
	waitReads rung = iota
	askLead
	askRanks
	waitFarm
	askHolders
	waitTurn
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
		return []rung{waitReads, askLead, askRanks, waitFarm, askHolders, waitTurn, askSwarmHolders, askSwarmLead, readOrigin, waitLast, askAnyone, giveUp}
	case Outer:
		return []rung{waitReads, waitFarm, askHolders, askSwarmLead, askLead, askRanks, readOrigin, askAnyone, giveUp}
	case OuterPassed:
		return []rung{waitReads, askLead, askRanks, waitFarm, askHolders, readOrigin, askAnyone, giveUp}
	}
	return []rung{waitReads, askRanks, waitFarm, askHolders, askSwarmHolders, readOrigin, giveUp} // Last
}

// ladder leaves out the rungs whose sense is that somebody reads the origin, where nobody is
// to.
func (c Config) ladder() []rung {
	all := ladder(c.Depth)
	if c.NoOrigin {
		all = slices.DeleteFunc(all, func(r rung) bool { return r == readOrigin || r == askAnyone })
	}
	return all
}

// Job is the way of one run, or of the part of it that is missing. Not safe for
// concurrent use.
type Job struct {
	// Of is what the caller knows it by.
	Of any
	// Slow says that nobody in a hurry is to join it.
	Slow     bool
	m        *Member
	cfg      Config
	ladder   []rung
	at       int // on the ladder
	count    int // asked on this rung
	flights  []*Flight
	left     int  // flights that have not ended
	unwanted bool // nobody waits for it any more

	asked map[Peer]bool // asked for what they have
	fetch map[Peer]bool // asked to bring it in

	patience patience
	now      time.Time
	last     time.Time // when something came from anyone, or the start
	hedgeAt  time.Time // when to think of a hedge next
	under    []*source // under way
	waiting  bool      // a wait is under way
	turn     time.Time // when the farm that leads is asked, of waitTurn
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

func (m *Member) job(cfg Config) *Job {
	return &Job{
		m: m, cfg: cfg, ladder: cfg.ladder(), patience: patienceOf(cfg.Hurry),
		asked: map[Peer]bool{m.self: true, cfg.From: true}, fetch: map[Peer]bool{m.self: true, cfg.From: true},
	}
}

// step takes an event and returns what to do. After Done or Fail it returns
// nothing: answers that are late change nothing.
func (j *Job) step(now time.Time, e Event) []Action {
	if j.over {
		return nil
	}
	j.now = now
	switch e.Kind {
	case Start:
		j.begun()
	case Brought:
		j.brought(e.Peer, e.Bytes)
		return nil
	case Endgame:
		if p := j.holder(false); len(j.under) == 1 && j.blocked() && p != "" { // no uplink is to carry it twice
			return j.askOne(p)
		}
		return nil
	case Waited:
		j.waiting = false
		if j.ladder[j.at] == waitReads {
			j.begun()
		}
		if j.left == 0 {
			return j.finish(nil)
		}
	case Woke:
		if j.left == 0 {
			return j.finish(nil)
		}
	case Answered, OriginEnded:
		how := vain
		switch {
		case e.Why != "":
			how = overtaken
		case j.left == 0:
			how = whole
		}
		s := j.ended(e.Peer, how)
		if s != nil && s.load != nil {
			s.load.spare = float64(e.Spare)
		}
		if j.left == 0 {
			return j.finish(s)
		}
		if s == nil { // it was dropped
			break
		}
		j.passing = false
		j.note(e.Peer, e.Why, e.Nowhere)
		j.gone = j.gone || e.Never && e.Kind == OriginEnded
		switch {
		case !s.act.Fetch, e.Refer != "": // who refers may be asked again
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
	if j.cfg.Hurry { // others try it by asking it
		return append(j.m.due(j.cfg.Root, now), j.onward()...)
	}
	return j.onward()
}

// begun begins the climb.
func (j *Job) begun() { j.last, j.hedgeAt = j.now, j.now.Add(HedgeAfter) }

// aside reports whether a member is passed over: it failed or was silent lately, or lied.
func (j *Job) aside(p Peer) bool { return j.m.passes(p, j.now, j.cfg.Hurry) }

func (j *Job) note(source Peer, why string, nowhere bool) {
	absent := "absent"
	if nowhere {
		absent = "the origin has told it that it is gone, or damaged"
	}
	if len(j.tried) < triedMax {
		j.tried = append(j.tried, Tried{source, cmp.Or(why, absent)})
	}
}

// referred follows a referral, or goes back to the member that gave one; one that is busy
// refers to itself: another that shows what is missing is asked before.
func (j *Job) referred(s *source, e Event) []Action {
	to, sends, next := e.Refer, s.act.Fetch || s.act.Relay, source{rung: s.rung, again: s.again}
	if to != "" && sends && !s.insists {
		next.again = cmp.Or(s.again, &s.act)
	}
	if to != "" && to == e.Peer {
		to = j.holder(!j.m.near(to))
	}
	switch {
	case to == "" || j.fetch[to] || j.aside(to) || j.refers >= refersMax:
	case !sends && outranks(j.cfg.Key, to, j.m.self): // so nobody waits for one that waits for it
		if !j.m.near(to) { // else it was not asked for a reason
			next.act = Action{Kind: Ask, Peer: to, Fetch: true, Passed: !j.upward(to)}
		}
	case !j.asked[to]:
		next.act = j.holds(to)
	}
	switch {
	case next.act.Peer != "":
		j.refers++
		j.asked[to], j.fetch[to] = true, j.fetch[to] || next.act.Fetch
		return j.begin(next)
	case next.again != nil:
		return j.begin(source{act: *next.again, rung: j.at, insists: true})
	}
	return nil
}

// answered leaves the rung of a lead that has answered that it could not: it has
// climbed the ladder itself, and one that takes its place would do no better.
func (j *Job) answered(s *source, e Event) {
	on := j.ladder[s.rung]
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
func (j *Job) hedge() []Action {
	if !j.cfg.Guest || j.cfg.NoOrigin || j.now.Before(j.hedgeAt) {
		return nil
	}
	j.hedgeAt = j.now.Add(HedgeAfter)
	if j.reads > 0 || !j.m.Origin || !j.waiting && len(j.under) == 0 || j.ladder[j.at] == waitReads || !j.m.Has(j.now, j.need()) {
		return nil
	}
	return j.read(true)
}

func (j *Job) read(hedge bool) []Action {
	j.reads++
	return j.begin(source{act: Action{Kind: ReadOrigin, Hedge: hedge}, rung: j.at, beside: hedge})
}

// climb goes up until a rung has something to do.
func (j *Job) climb() []Action {
	for {
		acts, stay := j.stand()
		if acts != nil || stay {
			return acts
		}
		j.at++
		j.count = 0
	}
}

// stand asks the rung for something to do; stay means to wait there for what is
// under way.
func (j *Job) stand() (acts []Action, stay bool) {
	switch j.ladder[j.at] {
	case waitReads: // a read waits for nobody, so everybody may wait for it
		return j.wait(WaitReads, !j.readsElsewhere()), false
	case askLead:
		return j.askLead(), false
	case askRanks:
		return j.askBehind(), false
	case waitFarm:
		settled, _ := j.cfg.Root.NearSettled()
		return j.wait(WaitFarm, settled), false
	case askHolders:
		return j.askHolder(false, holdersAsked), false
	case askSwarmHolders:
		return j.askHolder(true, swarmHoldersAsked), false
	case waitTurn:
		return j.awaitTurn()
	case askSwarmLead:
		return j.askSwarmLead(), false
	case readOrigin:
		if r := j.reading(); r != nil {
			return nil, !r.passed
		}
		if !j.m.Origin || j.count > 0 || j.reads >= readsMax {
			return nil, false
		}
		j.count++
		return j.read(false), false
	case waitLast: // nobody else is left to ask: now a guest waits too
		return j.waitSwarm(), false
	case askAnyone:
		return j.askAnyone(), false
	}
	return j.giveUp()
}

// NotAsked is why the origin has failed where nobody was to read it.
const NotAsked = "not asked, as --no-origin-fallback says"

// giveUp ends the job once nobody is left to ask and nobody under way.
func (j *Job) giveUp() (acts []Action, stay bool) {
	if acts := j.askBeside(); acts != nil || len(j.under) > 0 {
		return acts, true
	}
	switch {
	case j.cfg.NoOrigin:
		j.note("", NotAsked, false)
	case j.reads == 0:
		j.note("", "not reachable from this node", false)
	}
	j.over = true
	return []Action{{Kind: Fail, Tried: j.tried, Final: !j.maybe && !j.cfg.NoOrigin && (j.gone || j.told())}}, false
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

// waitSwarm waits for announcements, lastWait after the root was wanted first at most.
func (j *Job) waitSwarm() []Action {
	left := j.cfg.Root.SettlesIn(j.now) - SwarmWait + lastWait
	acts := j.wait(WaitSwarm, left <= 0)
	for i := range acts {
		acts[i].Wait = left
	}
	return acts
}

// ranks yields the live members in the order in which they lead the run; those that
// are passed over lead nothing.
func (j *Job) ranks(yield func(Peer) bool) {
	for _, place := range j.m.farm.order(j.cfg.Key) {
		if p := j.m.farm.members[place]; !j.aside(p) && !yield(p) {
			return
		}
	}
}

// askBehind asks the ranks that follow this node's: whoever acts as the lead asks
// them, and leaves out those ahead, whom the asker found silent or does not see.
func (j *Job) askBehind() []Action {
	behind := false
	for p := range j.ranks {
		if behind {
			if acts := j.askFor(j.instead(p), nextRanks); acts != nil {
				return acts
			}
		}
		behind = behind || p == j.m.self
	}
	return nil
}

// askLead asks the member that leads the run to bring it in; when it fails, the
// next one takes its place, and is not to turn to the failed one itself. A
// request that a member sent here is passed on, once, if another one leads in
// this node's view.
func (j *Job) askLead() []Action {
	passed, ok := j.cfg.Depth.near()
	if !ok || j.count >= leadsAsked || passed && j.count > 0 {
		return nil
	}
	passed = passed || j.count > 0
	for p := range j.ranks {
		if p == j.m.self {
			return nil
		}
		if !j.fetch[p] && !j.isAsked(p) {
			if h := j.instead(p); h != p {
				return j.ask(Action{Kind: Ask, Peer: h})
			}
			return j.askFetch(p, passed && !j.upward(p))
		}
	}
	return nil
}

// upward reports whether a member is asked as if this node's farm had not been asked yet:
// one that ranks higher, of a run that nobody is in a hurry for and that no other farm asks
// for. It may go outside for it, and as each asks one that ranks higher they never wait for
// each other.
func (j *Job) upward(p Peer) bool {
	return j.cfg.Depth == Led && !j.cfg.Hurry && outranks(j.cfg.Key, p, j.m.self) || j.cfg.Depth == Own && !j.cfg.Hurry
}

// askSwarmLead asks the farm that leads the run among those that announced the
// root, this one included, through its announcers; when none of them answers, the
// farm that ranks next.
func (j *Job) askSwarmLead() []Action {
	passed, ok := j.cfg.Depth.far()
	if !ok || j.count >= announcersAsked || passed && j.count > 0 {
		return nil
	}
	r := j.cfg.Root
	for _, place := range r.farms.order(j.cfg.Key) {
		farm := r.farms.members[place]
		if farm == j.m.name {
			return nil
		}
		if acts := j.askAnnouncer(farm, passed); acts != nil {
			return acts
		}
	}
	return nil
}

// awaitTurn has who is in no hurry wait for announcements, and then leave it to other farms
// of a crowd to ask the one that leads a run, until it is this one's turn. Those that show
// it meanwhile are asked. A farm that leads it, as far as it knows, and that others have
// found waits for nobody.
func (j *Job) awaitTurn() (acts []Action, stay bool) {
	r := j.cfg.Root
	settled, leads := r.SettlesIn(j.now) == 0, r.leads(j.cfg.Key) == j.m.name
	if j.cfg.Hurry || settled && (leads || !j.crowded()) || leads && r.visible && j.cfg.Depth == Led {
		return nil, false
	}
	if settled && j.turn.IsZero() {
		j.turn = j.now.Add(r.turnIn(j.cfg.Key))
	}
	for _, far := range [...]bool{false, true} {
		if acts := j.askHolder(far, swarmHoldersAsked); acts != nil {
			return acts, true
		}
	}
	return nil, !settled || j.now.Before(j.turn)
}

// crowded reports whether many farms want what nobody hurries this job for: then those that
// lead, which everybody knows, are asked for nothing but that, and in turn.
func (j *Job) crowded() bool {
	return !j.cfg.Hurry && !j.cfg.Ahead && j.cfg.Ask == "" && j.cfg.Depth <= Led && j.cfg.Root.crowd() > crowdMin
}

// askAnnouncer asks the first that announced the root of a farm, which is not the one
// that has asked us.
func (j *Job) askAnnouncer(farm Peer, passed bool) []Action {
	for _, q := range j.cfg.Root.found {
		if q.farm == farm && string(farm) != j.cfg.FromFarm && j.mayFetch(q.peer) {
			return j.askFetch(q.peer, passed)
		}
	}
	return nil
}

// mayFetch reports whether a member may be asked to bring something in.
func (j *Job) mayFetch(p Peer) bool { return !j.fetch[p] && !j.aside(p) && !j.isAsked(p) }

// provider returns a member of this farm to ask that may read the origin: those first
// that could lately.
func (j *Job) provider() (Peer, bool) {
	for _, p := range j.m.providers {
		if j.m.near(p) && j.mayFetch(p) {
			return p, true
		}
	}
	for p := range j.ranks {
		if j.mayFetch(p) {
			return p, true
		}
	}
	return "", false
}

// askAnyone is the rung of a node that can't read the origin, or where that
// failed: whoever may be able to is asked to bring the run in, those first that
// could lately. Where a lead has asked the farm only a few are asked again, for their
// word that the origin has not what is missing: its own is one, or none.
func (j *Job) askAnyone() []Action {
	if j.count >= anyoneAsked || j.words >= wordsEnough {
		return nil
	}
	if _, ok := j.cfg.Depth.near(); ok && (!j.led || !j.m.Origin && j.count < wordsAsked) {
		if p, ok := j.provider(); ok {
			return j.askFetch(p, true)
		}
	}
	if _, ok := j.cfg.Depth.far(); ok {
		r := j.cfg.Root
		for _, place := range r.farms.order(j.cfg.Key) {
			if farm := r.farms.members[place]; farm != j.m.name {
				if acts := j.askAnnouncer(farm, true); acts != nil {
					return acts
				}
			}
		}
	}
	return nil
}

// askHolder asks a member that shows what is missing.
func (j *Job) askHolder(far bool, most int) []Action {
	if j.count >= most || j.passing {
		return nil
	}
	p := j.holder(far)
	if p == "" {
		return nil
	}
	return j.askFor(p, most)
}

// askFor asks a member for what it has, unless enough were asked. A climb that passes
// members over leaves them to be asked beside.
func (j *Job) askFor(p Peer, most int) []Action {
	if j.count >= most || j.passing || j.asked[p] || j.aside(p) {
		return nil
	}
	j.count++
	return j.ask(j.holds(p))
}

// holds asks a member for what it shows: one elsewhere shows what its farm holds.
func (j *Job) holds(p Peer) Action {
	return Action{Kind: Ask, Peer: p, Relay: j.cfg.Depth <= Led && !j.m.near(p)}
}

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
