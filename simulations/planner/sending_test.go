package planner_test

import (
	"time"

	"github.com/grangemesh/grange/node/fetch/crowds"
	"github.com/grangemesh/grange/node/fetch/plan"
)

// sending is an ask on its way to a member, and its answer back.
type sending struct {
	n, to  *node
	run    int
	act    plan.Action
	cfg    plan.Config // of the job that asks
	delay  time.Duration
	id     int
	e      plan.Event
	answer func(plan.Event)
	// crowded is true while it counts among those that the run is sent to.
	crowded, dropped bool
}

// send asks a member.
func (n *node) send(run int, a plan.Action, cfg plan.Config, answer func(plan.Event)) *sending {
	s := &sending{n: n, to: n.m.nodes[a.Peer], run: run, act: a, cfg: cfg, delay: lanDelay, id: n.m.seq, answer: answer}
	if s.to == nil || s.to.farm != n.farm {
		s.delay = wanDelay
	}
	s.e = plan.Event{Kind: plan.Answered, Peer: a.Peer}
	n.m.after(s.delay, s.arrive)
	return s
}

// silent ends an ask that nobody answers.
func (s *sending) silent() {
	s.n.m.after(silence, func() {
		s.n.mind.Fail(s.act.Peer, s.n.m.clock())
		s.e.Why = "silent"
		s.tell(s.e)
	})
}

// crowds are those that the asker is one of, as node/fetch tells them apart.
func (s *sending) crowds() *crowds.Of[int] {
	if s.to.farm == s.n.farm {
		return s.to.crowds[0]
	}
	return s.to.crowds[1]
}

// arrive is what the member does that is asked.
func (s *sending) arrive() {
	to := s.to
	if to == nil || to.dead || to.m.cut(to, s.n) {
		s.silent()
		return
	}
	if s.dropped {
		return
	}
	near := to.farm == s.n.farm
	if near {
		to.mind.Seen(s.n.name, s.n.m.clock())
	}
	to.asked[s.id] = s.silent
	if !s.n.m.linked() {
		s.take()
		return
	}
	begun := false
	now := s.crowds().Begin(s.run, crowds.Request{Asker: s.n.name, HasTime: !s.cfg.Hurry, Held: to.holds[s.run], Then: func(refer plan.Peer) {
		begun = true
		switch {
		case refer != "":
			s.e.Refer = refer
			s.reply(false)
		case !s.waits():
			s.crowds().End(s.run, s.n.name, false)
		default:
			s.crowded = true
			s.take()
		}
	}})
	for _, patience := range []time.Duration{crowds.Patience, crowds.LongPatience} {
		if now != nil {
			s.n.m.unless(patience, func() bool { return begun }, func() { now(patience == crowds.LongPatience) })
		}
	}
}

// take is what the member does for one that is to be answered.
func (s *sending) take() {
	to, near := s.to, s.to.farm == s.n.farm
	end := s.reply
	switch {
	case to.staller:
	case to.refers != "" && s.act.Fetch:
		s.e.Refer, to.refers = to.refers, ""
		end(false)
	case to.holds[s.run] || to.liar || !s.act.Fetch && !s.act.Relay:
		if near && !to.holds[s.run] {
			if lead, ok := to.mind.Better(s.n.m.runs[s.run], s.n.name, s.n.m.clock()); ok {
				s.e.Refer = lead
			}
		}
		end(to.holds[s.run] || to.liar)
	default:
		cfg := plan.Config{Depth: plan.Received(near, s.act.Passed || s.act.Relay), From: s.n.name, FromFarm: s.n.farm, Hurry: s.cfg.Hurry, NoOrigin: s.cfg.NoOrigin || s.act.Relay}
		to.want(s.run, cfg, end)
	}
}

// reply sends what was asked for, or says that it is absent.
func (s *sending) reply(ok bool) {
	s.n.m.after(s.delay, func() {
		switch {
		case !s.waits():
		case ok:
			s.progress()
			s.n.m.carry(carried{s.to.way(s.n), s.waits, func() { s.end(true) }})
		default:
			s.end(false)
		}
	})
}

// waits reports whether the member that was asked still lives, and is still asked.
func (s *sending) waits() bool {
	_, ok := s.to.asked[s.id]
	return ok
}

func (s *sending) tell(e plan.Event) {
	if !s.dropped {
		s.answer(e)
	}
}

// drop ends an ask that is under way.
func (s *sending) drop() {
	if s.dropped = true; s.to != nil && s.waits() && s.n.m.linked() {
		s.close(false)
	}
}

// close has the member answer no more.
func (s *sending) close(whole bool) {
	delete(s.to.asked, s.id)
	if s.crowded {
		s.crowds().End(s.run, s.n.name, whole)
	}
}

// progressInterval is how often something of a run has come that is long on its way: its
// chunks come one by one.
const progressInterval = 2 * time.Second

func (s *sending) progress() {
	s.n.m.unless(progressInterval, func() bool { return !s.waits() }, func() {
		s.tell(plan.Event{Kind: plan.Brought, Peer: s.act.Peer})
		s.progress()
	})
}

func (s *sending) end(ok bool) {
	n, p := s.n, s.act.Peer
	if !s.waits() {
		return
	}
	s.close(ok)
	switch {
	case ok && s.to.liar:
		s.e.Why = "sent wrong bytes"
		n.m.lies++
		n.mind.Lied(p, n.m.clock())
	case ok:
		n.mind.Work(p, n.m.clock())
		if s.to.farm == n.farm {
			n.mind.Seen(p, n.m.clock())
		}
		n.land(s.run)
	case s.e.Refer == "":
		n.root.Lacks(p, []uint64{uint64(s.run)})
	}
	s.tell(s.e)
}

// read reads the origin, or waits for the node's read that is under way.
func (n *node) read(run int, done func(ok bool)) {
	n.reading[run] = append(n.reading[run], done)
	if len(n.reading[run]) > 1 {
		return
	}
	n.objects[run].Reading = true
	n.m.requests++
	n.m.after(n.m.delay, func() {
		if n.m.down {
			n.hasRead(run, false)
			return
		}
		n.m.carry(carried{[]*link{&n.m.origin, &n.up.in, &n.in}, n.lives, func() { n.hasRead(run, true) }})
	})
}

func (n *node) hasRead(run int, ok bool) {
	waiting := n.reading[run]
	delete(n.reading, run)
	if n.dead {
		return
	}
	o := n.objects[run]
	o.Reading = false
	if ok {
		n.m.reads[n.farm]++
		n.land(run)
	}
	for _, w := range waiting {
		w(ok)
	}
	if o.Idle() {
		delete(n.objects, run)
	}
}
