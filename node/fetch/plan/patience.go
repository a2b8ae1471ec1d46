package plan

import (
	"fmt"
	"slices"
	"time"
)

const (
	// guestBeside is how long a guest waits for bytes of one source before the next
	// that shows what is missing is asked beside it: many round trips, and as long as
	// it waits for a hedge. prefetchBeside is that for everybody else: bulk may queue
	// on a slow link behind what the same member sends already.
	guestBeside    = HedgeAfter
	prefetchBeside = 5 * time.Second
	// guestPass is how long a guest goes without a byte from anyone before the climb
	// goes on beside those that are asked, to another lead or to the origin: longer
	// than an origin that is merely slow takes, since the run may be read twice by it.
	// guestStep is what each further source gets then, and what the first one gets from
	// a node that has lately found members that stall.
	guestPass = 4 * time.Second
	guestStep = time.Second
	// guestHolder is that where all that are asked were to send what they have: nothing is
	// read twice by it, and a silent member is not waited for longer.
	guestHolder = 2 * time.Second
	// hardDeadline is how long a source may go without bytes: then it has failed. A
	// lead whose origin is as slow as that is of no use. Only then does prefetch go on
	// to the next lead, or to the origin.
	hardDeadline = 30 * time.Second
	// fairShare is how many times as long as another that brings a run in a member must
	// have had to be taken for one that stalls.
	fairShare = 2
	// turnLook is how often a job whose turn is to come looks whether somebody shows what is
	// missing: as often as members say so.
	turnLook = 250 * time.Millisecond
	// underWayMax bounds the members asked at once; the one that has been quiet for
	// longest makes room.
	underWayMax = 8
	// besidesMax bounds the members that a job asks beside others.
	besidesMax = 32
	// againFirst is how long a guest's read whose climb has failed waits until it climbs
	// once more, and with it all others for the same bytes; it doubles to againMax: each
	// climb asks some members for what they have, and one of them may have got it.
	againFirst = 250 * time.Millisecond
	againMax   = 2 * time.Second
)

// Again is the pause after the n-th climb in vain, from 0 on.
func Again(n int) time.Duration { return min(againFirst<<min(n, 10), againMax) }

// patience is how long those are waited for that bring nothing, whatever signs of
// progress they show.
type patience struct {
	beside time.Duration // until another that shows what is missing is asked too
	pass   time.Duration // until the climb goes on
	step   time.Duration // until it goes on again
}

func patienceOf(hurry bool) patience {
	if hurry {
		return patience{guestBeside, guestPass, guestStep}
	}
	return patience{prefetchBeside, hardDeadline, hardDeadline}
}

// source is one that is under way: an Ask or a ReadOrigin.
type source struct {
	act     Action
	asked   time.Time
	since   time.Time // when it last brought something, or was asked
	rung    int
	beside  bool    // it was asked beside another, out of turn
	passed  bool    // the climb has gone on
	again   *Action // of a referral: the ask to repeat when it is in vain,
	insists bool    // and that it is such a one

	// Of an Ask: its member's load, the bytes that are to come, and whether it has them,
	// for all that is known.
	load *load
	left int64
	sure bool
}

// begin notes a source that is going to be under way, and makes room for it.
func (j *Job) begin(s source) (acts []Action) {
	if s.act.Kind == Ask && len(j.under) >= underWayMax {
		var quiet *source
		for _, o := range j.under {
			if o.act.Kind == Ask && (quiet == nil || o.since.Before(quiet.since)) {
				quiet = o
			}
		}
		acts = j.drop(quiet)
	}
	s.asked, s.since, s.left = j.now, j.now, j.need()
	if s.act.Kind == Ask {
		s.sure = !s.act.Fetch || j.shown(s.act.Peer) == j.left
		j.m.loads.began(&s)
	}
	j.under = append(j.under, &s)
	return append(acts, s.act)
}

// ended takes the source that has ended so out of those under way; nil when it was dropped
// before.
func (j *Job) ended(p Peer, how ending) *source {
	for i, s := range j.under {
		if s.act.Peer == p {
			j.under = slices.Delete(j.under, i, i+1)
			if s.load != nil {
				j.m.loads.ended(s, how, j.now)
			}
			return s
		}
	}
	return nil
}

func (j *Job) drop(s *source) []Action {
	j.ended(s.act.Peer, overtaken)
	j.maybe = true
	j.note(s.act.Peer, fmt.Sprintf("brought nothing for %s", j.now.Sub(s.since)), false)
	return []Action{{Kind: Drop, Peer: s.act.Peer, Quiet: j.now.Sub(s.since)}}
}

// brought notes that something came from a member.
func (j *Job) brought(p Peer, bytes int64) {
	for _, s := range j.under {
		if s.act.Peer == p {
			s.since, s.passed, j.last = j.now, false, j.now
			s.brought(bytes)
		}
	}
}

// finish ends the job well, and drops who was overtaken: one that shows what it did
// not bring, a lead that was passed over, or one that had far longer than the winner
// took to bring it in. Who won may be unknown, and nil.
func (j *Job) finish(winner *source) (acts []Action) {
	fair := j.patience.pass
	if winner != nil && (winner.act.Fetch || winner.act.Kind == ReadOrigin) {
		fair = min(fair, max(j.patience.beside, fairShare*j.now.Sub(winner.asked)))
	}
	for _, s := range slices.Clone(j.under) {
		most := j.patience.beside
		if s.act.Fetch {
			most = fair
		}
		if s.act.Kind == Ask && j.now.Sub(s.since) >= most {
			acts = append(acts, j.drop(s)...)
		}
	}
	j.end()
	return append(acts, Action{Kind: Done})
}

// end has nothing of the job be under way any more.
func (j *Job) end() {
	for len(j.under) > 0 {
		j.ended(j.under[0].act.Peer, overtaken)
	}
	j.over = true
}

// onward does what time asks for: it drops those that have had theirs, hedges, and
// climbs unless a member is worth waiting for.
func (j *Job) onward() []Action {
	acts := j.dropLate()
	acts = append(acts, j.hedge()...)
	switch {
	case j.waiting:
	case j.mayPass():
		for _, s := range j.under {
			s.passed = true
		}
		j.passing = true
		acts = append(acts, j.climb()...)
		if !j.over {
			acts = append(acts, j.askBeside()...)
		}
	case !j.blocked():
		acts = append(acts, j.climb()...)
		if !j.over && j.reading() != nil && j.quiet() >= j.patience.beside {
			acts = append(acts, j.askBeside()...)
		}
	case j.quiet() >= j.patience.beside || j.late():
		acts = append(acts, j.askBeside()...)
	}
	return acts
}

// late reports whether all that are asked send so slowly that another member, which shows
// what is missing, would have sent it long before them.
func (j *Job) late() bool {
	for _, s := range j.under {
		least := lateMin
		if !j.cfg.Hurry && !j.m.near(s.act.Peer) {
			least = lateFar
		}
		if !s.sure || j.now.Sub(s.asked) < least {
			return false
		}
	}
	other := j.beside()
	return other != "" && !slices.ContainsFunc(j.under, func(s *source) bool {
		return !j.m.loads.slower(j.m.loads.wait(s.act.Peer, 0, j.now), lateShare, other, j.need(), j.now)
	})
}

// dropLate drops the members that have brought nothing until their deadline, and
// goes back to who referred to one.
func (j *Job) dropLate() (acts []Action) {
	for i := 0; i < len(j.under); {
		s := j.under[i]
		if s.act.Kind != Ask || j.now.Sub(s.since) < hardDeadline {
			i++
			continue
		}
		acts = append(acts, j.drop(s)...)
		if s.again != nil {
			acts = append(acts, j.ask(*s.again)...)
		}
	}
	return acts
}

// blocked reports whether a member is asked that the climb waits for.
func (j *Job) blocked() bool {
	return slices.ContainsFunc(j.under, func(s *source) bool { return s.act.Kind == Ask && !s.passed })
}

func (j *Job) reading() *source {
	for _, s := range j.under {
		if s.act.Kind == ReadOrigin {
			return s
		}
	}
	return nil
}

// quiet is how long nobody was asked and nobody has brought anything.
func (j *Job) quiet() time.Duration {
	var newest time.Time
	for _, s := range j.under {
		if s.since.After(newest) {
			newest = s.since
		}
	}
	return j.now.Sub(newest)
}

// mayPass reports whether the climb is to go on beside those under way. What it
// comes to may spend a read of the origin, so one that reads it already, be it this
// node, is waited for until the hard deadline.
func (j *Job) mayPass() bool {
	step := j.patience.step
	waitedFor := false
	var newest time.Time
	for _, s := range j.under {
		if s.passed {
			continue
		}
		waitedFor = true
		if s.act.Kind == ReadOrigin {
			step = hardDeadline
		}
		if !s.beside && s.since.After(newest) {
			newest = s.since
		}
	}
	return waitedFor && j.now.Sub(j.last) >= j.pass() && j.now.Sub(newest) >= step
}

// pass is how long nothing comes from anyone until the climb goes on.
func (j *Job) pass() time.Duration {
	switch {
	case j.cfg.Hurry && j.m.Wary(j.now):
		return guestStep
	case j.cfg.Hurry && !slices.ContainsFunc(j.under, func(s *source) bool { return s.act.Fetch || s.act.Kind == ReadOrigin }):
		return guestHolder
	}
	return j.patience.pass
}

// askBeside asks one more member beside those that are quiet: the one that gave a
// referral, if that is quiet, else one that shows what is missing. Neither costs
// the origin anything.
func (j *Job) askBeside() []Action {
	for _, s := range j.under {
		if s.again != nil && j.now.Sub(s.since) >= j.patience.beside {
			a := *s.again
			s.again = nil
			return j.ask(a)
		}
	}
	if p := j.beside(); p != "" && j.besides < besidesMax {
		return j.askOne(p)
	}
	return nil
}

// askOne asks a member beside others.
func (j *Job) askOne(p Peer) []Action {
	j.besides++
	j.asked[p] = true
	return j.begin(source{act: j.holds(p), rung: j.at, beside: true})
}

// beside returns who is to be asked beside others.
func (j *Job) beside() Peer {
	p := j.holder(false)
	if p == "" && slices.Contains(j.ladder, askSwarmHolders) {
		p = j.holder(true)
	}
	return p
}

// Wake returns when the job wants a Woke, if nothing else happens before; the zero
// time when it does not.
func (j *Job) Wake() time.Time {
	turns := j.ladder[j.at] == waitTurn && !j.over
	if !turns && (j.over || len(j.under) == 0 && !j.waiting) {
		return time.Time{}
	}
	next := j.now.Add(j.patience.beside)
	sooner := func(at time.Time) {
		if at.After(j.now) && at.Before(next) {
			next = at
		}
	}
	sooner(j.last.Add(j.pass()))
	if turns {
		sooner(j.now.Add(turnLook))
		sooner(j.turn)
	}
	for _, s := range j.under {
		sooner(s.since.Add(j.patience.beside))
		sooner(s.since.Add(j.patience.step))
		sooner(s.since.Add(hardDeadline))
		if s.sure { // less and less often
			sooner(s.asked.Add(max(lateMin, 2*j.now.Sub(s.asked))))
		}
	}
	if j.cfg.Guest && j.reads == 0 {
		sooner(j.hedgeAt)
	}
	return next
}
