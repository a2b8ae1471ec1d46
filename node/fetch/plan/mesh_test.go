package plan_test

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
)

const (
	lanDelay = time.Millisecond
	wanDelay = 20 * time.Millisecond
	// silence is how long a dead member is waited for.
	silence = 2 * time.Second
)

// mesh is farms of nodes that plan with real Jobs, in virtual time. What the
// planner leaves to its caller it does in the simplest way: it sends asks after a
// delay, joins the work that a depth may join, and shares reads of the origin.
type mesh struct {
	now    time.Duration
	seq    int
	queue  events
	nodes  map[plan.Peer]*node
	farms  map[string][]plan.Peer
	delay  time.Duration // of a read of the origin
	down   bool          // the origin
	reads  map[string]int
	trace  *strings.Builder
	steps  int
	joined int
}

// node is one member.
type node struct {
	m       *mesh
	name    plan.Peer
	farm    string
	origin  bool
	dead    bool
	liar    bool
	staller bool // says for ever that it makes progress
	shows   bool // shows whatever it is asked for
	blind   bool // sees no bitmaps
	cold    bool // has yet to see them
	budget  bool
	holds   map[string]bool
	view    []plan.Peer            // nil for all that live
	swarm   map[string][]plan.Peer // what it has found
	settled bool
	breaker plan.Breaker
	banned  map[plan.Peer]bool
	refers  plan.Peer // refers everybody to that one
	flights map[flightKey]*flight
	reading map[string][]func(ok bool)
	asked   map[int]func() // what to do for those who wait for it when it dies
}

type flightKey struct {
	run   string
	depth plan.Depth
}

type flight struct {
	n       *node
	key     flightKey
	job     *plan.Job
	hurry   bool
	waiters []func(ok bool)
	asks    map[plan.Peer]*bool // those under way; set when one is dropped
	ended   bool
}

type event struct {
	at   time.Duration
	seq  int
	do   func()
	idle func() bool // that nothing is to be done any more; nil for never
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func newMesh() *mesh {
	return &mesh{nodes: map[plan.Peer]*node{}, farms: map[string][]plan.Peer{}, delay: 50 * time.Millisecond, reads: map[string]int{}, trace: new(strings.Builder)}
}

func (m *mesh) add(farm string, name plan.Peer) *node {
	n := &node{m: m, name: name, farm: farm, origin: true, holds: map[string]bool{}, settled: true, banned: map[plan.Peer]bool{}, flights: map[flightKey]*flight{}, reading: map[string][]func(bool){}, asked: map[int]func(){}}
	m.nodes[name] = n
	m.farms[farm] = append(m.farms[farm], name)
	slices.Sort(m.farms[farm])
	return n
}

func (m *mesh) after(d time.Duration, do func()) {
	m.unless(d, nil, do)
}

func (m *mesh) unless(d time.Duration, idle func() bool, do func()) {
	m.seq++
	heap.Push(&m.queue, event{m.now + d, m.seq, do, idle})
}

// stepsMax is more than any test takes: a mesh that goes on is one that never
// ends.
const stepsMax = 500_000

func (m *mesh) run() {
	for len(m.queue) > 0 {
		if m.steps++; m.steps > stepsMax {
			panic("the mesh does not come to rest")
		}
		e := heap.Pop(&m.queue).(event)
		if e.idle != nil && e.idle() {
			continue
		}
		m.now = e.at
		e.do()
	}
}

func (m *mesh) say(format string, args ...any) {
	fmt.Fprintf(m.trace, "%5dms  %s\n", m.now.Milliseconds(), fmt.Sprintf(format, args...))
}

func (m *mesh) clock() time.Time { return time.Unix(1_800_000_000, 0).Add(m.now) }

// look is a node's view.
func (n *node) look(run string, hurry bool) plan.View {
	v := plan.View{Farm: n.view, Swarm: n.swarm, SwarmSettled: n.settled, FarmSettled: !n.cold, Aside: map[plan.Peer]bool{}, Origin: n.origin && !n.m.down, HedgeBudget: n.budget, Wary: n.breaker.Wary(n.m.clock())}
	if v.Farm == nil {
		v.Farm = n.m.farms[n.farm]
	}
	for p := range n.breaker.Passed(n.m.clock(), hurry) {
		v.Aside[p] = true
		if n.breaker.Due(p, n.m.clock()) {
			n.try(p)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(n.m.nodes)) {
		other := n.m.nodes[p]
		if n.blind || n.cold || other == n || !other.holds[run] && !other.shows || other.dead {
			continue
		}
		if other.farm == n.farm {
			v.Holders = append(v.Holders, p)
		} else if slices.Contains(n.swarm[other.farm], p) {
			v.SwarmHolders = append(v.SwarmHolders, p)
		}
	}
	return v
}

// try asks a member whether it is back.
func (n *node) try(p plan.Peer) {
	delay := 2 * wanDelay
	if to := n.m.nodes[p]; to == nil || to.dead {
		delay = silence
	}
	n.m.after(delay, func() {
		if to := n.m.nodes[p]; to == nil || to.dead {
			n.breaker.Fail(p, n.m.clock())
			return
		}
		n.breaker.Work(p, n.m.clock())
	})
}

// want begins or joins a flight; done is called when it has ended.
func (n *node) want(run string, cfg plan.Config, done func(ok bool)) {
	if n.holds[run] {
		done(true)
		return
	}
	farm := n.view
	if farm == nil {
		farm = n.m.farms[n.farm]
	}
	if cfg.Depth == plan.Own && plan.Lead(run, farm) == n.name {
		cfg.Depth = plan.Led
	}
	for d := cfg.Depth; int(d) < plan.Depths; d++ {
		if f := n.flights[flightKey{run, d}]; f != nil && (f.hurry || !cfg.Hurry) {
			n.m.joined++
			f.waiters = append(f.waiters, done)
			return
		}
	}
	cfg.Key, cfg.Self, cfg.Farm = run, n.name, n.farm
	f := &flight{n: n, key: flightKey{run, cfg.Depth}, job: plan.New(cfg), hurry: cfg.Hurry, waiters: []func(bool){done}, asks: map[plan.Peer]*bool{}}
	n.flights[f.key] = f
	f.step(plan.Event{Kind: plan.Start})
}

// wake has the job told of the time when it wants to be.
func (f *flight) wake() {
	at := f.job.Wake()
	if at.IsZero() {
		return
	}
	over := func() bool { return f.ended || f.n.dead || f.job.Wake() != at }
	f.n.m.unless(at.Sub(f.n.m.clock()), over, func() { f.step(plan.Event{Kind: plan.Woke}) })
}

func (f *flight) step(e plan.Event) {
	if f.n.dead {
		return
	}
	e.View = f.n.look(f.key.run, f.hurry)
	e.Missing = !f.n.holds[f.key.run]
	e.Now = f.n.m.clock()
	if f.ended {
		if acts := f.job.Step(e); len(acts) > 0 {
			panic(fmt.Sprintf("%s acts after the end: %v", f.n.name, acts))
		}
		return
	}
	for _, a := range f.job.Step(e) {
		f.act(a)
	}
	f.wake()
}

func (f *flight) act(a plan.Action) {
	n := f.n
	switch a.Kind {
	case plan.Ask:
		how := map[bool]string{true: " to bring it in", false: ""}[a.Fetch] + map[bool]string{true: ", passed on", false: ""}[a.Passed]
		n.m.say("%s asks %s%s", n.name, a.Peer, how)
		dropped := new(bool)
		f.asks[a.Peer] = dropped
		n.send(f.key.run, a, f.hurry, func(e plan.Event) {
			if !*dropped {
				f.step(e)
			}
		})
	case plan.Drop:
		n.m.say("%s drops %s", n.name, a.Peer)
		*f.asks[a.Peer] = true
		n.breaker.Stall(a.Peer, n.m.clock(), a.Quiet)
	case plan.ReadOrigin:
		n.m.say("%s reads the origin%s", n.name, map[bool]string{true: ", a hedge", false: ""}[a.Hedge])
		n.read(f.key.run, func(ok bool) {
			why := ""
			if !ok {
				why = "connection refused"
			}
			f.step(plan.Event{Kind: plan.OriginEnded, Why: why})
		})
	case plan.WaitFarm:
		n.m.say("%s waits for bitmaps", n.name)
		n.m.after(2*lanDelay, func() { n.cold = false; f.step(plan.Event{Kind: plan.Waited}) })
	case plan.WaitSwarm:
		n.m.say("%s waits for announcements", n.name)
		n.m.after(plan.SwarmWait, func() { n.settled = true; f.step(plan.Event{Kind: plan.Waited}) })
	case plan.Done, plan.Fail:
		f.ended = true
		if n.flights[f.key] == f {
			delete(n.flights, f.key)
		}
		if a.Kind == plan.Fail {
			n.m.say("%s fails: %s", n.name, tried(a.Tried))
		}
		for _, done := range f.waiters {
			done(a.Kind == plan.Done)
		}
	}
}

// tried is text for people.
func tried(all []plan.Tried) string {
	var out []string
	for _, t := range all {
		out = append(out, fmt.Sprintf("%s: %s", cmp.Or(t.Peer, "origin"), t.Why))
	}
	return strings.Join(out, "; ")
}

// die ends a node: what it was asked stays unanswered.
func (n *node) die() {
	n.dead = true
	n.m.say("%s dies", n.name)
	for _, id := range slices.Sorted(maps.Keys(n.asked)) {
		n.asked[id]()
	}
	clear(n.asked)
	clear(n.flights)
	clear(n.reading)
}

// send carries an ask to a member and its answer back.
func (n *node) send(run string, a plan.Action, hurry bool, answer func(plan.Event)) {
	to := n.m.nodes[a.Peer]
	delay := lanDelay
	if to == nil || to.farm != n.farm {
		delay = wanDelay
	}
	e := plan.Event{Kind: plan.Answered, Peer: a.Peer}
	silent := func() {
		n.m.after(silence, func() {
			n.breaker.Fail(a.Peer, n.m.clock())
			e.Why = "silent"
			answer(e)
		})
	}
	id := n.m.seq
	reply := func(ok bool) {
		if _, waits := to.asked[id]; !waits {
			return
		}
		delete(to.asked, id)
		n.m.after(delay, func() {
			switch {
			case ok && to.liar:
				e.Why = "sent wrong bytes"
				n.breaker.Aside(a.Peer, n.m.clock(), time.Hour)
				n.banned[a.Peer] = true
			case ok:
				n.holds[run] = true
			}
			answer(e)
		})
	}
	n.m.after(delay, func() {
		if to == nil || to.dead {
			silent()
			return
		}
		to.asked[id] = silent
		switch {
		case to.staller:
		case to.refers != "" && a.Fetch && e.Refer == "":
			e.Refer, to.refers = to.refers, ""
			reply(false)
		case to.holds[run] || to.liar || !a.Fetch:
			reply(to.holds[run] || to.liar)
		default:
			to.want(run, plan.Config{Depth: plan.Received(to.farm == n.farm, a.Passed), From: n.name, FromFarm: n.farm, Hurry: hurry}, reply)
		}
	})
}

// read reads the origin, or waits for the node's read that is under way.
func (n *node) read(run string, done func(ok bool)) {
	n.reading[run] = append(n.reading[run], done)
	if len(n.reading[run]) > 1 {
		return
	}
	n.m.after(n.m.delay, func() {
		waiting := n.reading[run]
		delete(n.reading, run)
		if n.dead {
			return
		}
		ok := !n.m.down
		if ok {
			n.holds[run] = true
			n.m.reads[n.farm]++
		}
		for _, w := range waiting {
			w(ok)
		}
	})
}
