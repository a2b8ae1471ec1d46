package planner_test

import (
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/grangemesh/grange/node/fetch/plan"
)

// nameFresh is node/records': for how long a lead answers with what it has read.
const nameFresh = 5 * time.Second

// names is what a node does about the one name of a scenario, as node/records does.
type names struct {
	saw     plan.Sight // at the origin
	at      time.Duration
	has     bool
	reading []func()
}

// lookAll has nodes look for a name at once:
//
//	look nodes=(a,b) name=N version=V [written=V2 at=30ms] [kill=(c) at=5ms]
func (m *mesh) lookAll(t *testing.T, d *datadriven.TestData) {
	m.now, m.reads = 0, map[string]int{}
	m.meet()
	var number, written int
	d.ScanArgs(t, "version", &number)
	m.named = plan.Sight{Version: uint64(number)}
	for _, n := range m.nodes {
		n.names = names{}
	}
	if d.HasArg("at") {
		at, err := time.ParseDuration(arg(t, d, "at"))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		m.after(at, func() {
			if d.HasArg("written") {
				d.ScanArgs(t, "written", &written)
				m.named = plan.Sight{Version: uint64(written)}
				m.say("version %d is written", written)
				return
			}
			for _, p := range peers(t, d, "kill") {
				m.nodes[p].die()
			}
		})
	}
	for _, p := range peers(t, d, "nodes") {
		n := m.nodes[p]
		n.look(arg(t, d, "name"), func(s plan.Sight, how string) { m.say("%s: version %d, %s", p, s.Version, how) })
	}
	m.play()
}

// look carries out what the planner says.
func (n *node) look(name string, done func(plan.Sight, string)) {
	l := n.mind.Look(name)
	said, over := map[plan.Peer]plan.Sight{}, false
	var step func(plan.Event)
	step = func(e plan.Event) {
		if n.dead || over {
			return
		}
		e.Look = l
		for _, a := range n.mind.Step(n.m.clock(), e) {
			switch a.Kind {
			case plan.Ask:
				n.askName(a, func(e plan.Event) {
					if e.Saw != nil {
						said[a.Peer] = *e.Saw
					}
					step(e)
				})
			case plan.Done:
				over = true
				done(said[a.Peer], "as its leads say")
			case plan.ReadOrigin:
				over = true
				n.readName(0, func() { done(n.names.saw, "as the origin says") })
			}
		}
	}
	step(plan.Event{Kind: plan.Start})
	n.m.unless(plan.LookBeside, func() bool { return over }, func() { step(plan.Event{Kind: plan.Woke}) })
}

// askName carries a question to a lead and its answer back.
func (n *node) askName(a plan.Action, answer func(plan.Event)) {
	n.m.say("%s asks %s%s", n.name, a.Peer, map[bool]string{true: " again"}[a.Version > 0])
	to, e := n.m.nodes[a.Peer], plan.Event{Kind: plan.Answered, Peer: a.Peer}
	silent := func() {
		n.m.after(silence, func() {
			e.Why = "silent"
			answer(e)
		})
	}
	n.m.seq++
	id := n.m.seq
	n.m.after(lanDelay, func() {
		switch {
		case to.dead:
			silent()
		case !to.origin:
			n.m.after(lanDelay, func() { answer(e) })
		default:
			to.asked[id] = silent
			to.readName(a.Version, func() {
				delete(to.asked, id)
				saw := to.names.saw
				if to.liar {
					saw.Version--
				}
				e.Saw = &saw
				n.m.after(lanDelay, func() { answer(e) })
			})
		}
	})
}

// readName reads the name at the origin, unless the node has just done so, or does.
func (n *node) readName(version uint64, done func()) {
	x := &n.names
	if x.has && x.saw.Version >= version && n.m.now-x.at < nameFresh {
		done()
		return
	}
	if x.reading = append(x.reading, done); len(x.reading) > 1 {
		return
	}
	n.m.say("%s reads the name", n.name)
	saw := n.m.named
	n.m.after(n.m.delay, func() {
		if n.dead {
			return
		}
		waiting := x.reading
		*x = names{saw: saw, at: n.m.now, has: true}
		for _, w := range waiting {
			w()
		}
	})
}
