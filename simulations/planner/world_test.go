package planner_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/fetch/crowds"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

const (
	lanDelay = time.Millisecond
	wanDelay = 20 * time.Millisecond
	// silence is how long a dead member is waited for.
	silence = 2 * time.Second
)

// mesh is farms of nodes that plan with the product's own plan.Member, in virtual time.
// It does what node/fetch does, in the simplest way: it sends asks after a delay, reads
// the origin, and tells who watches a node what has come there.
type mesh struct {
	now      time.Duration
	seq      int
	queue    calendar
	nodes    map[plan.Peer]*node
	farms    map[string][]plan.Peer
	delay    time.Duration // of a read of the origin
	down     bool          // the origin
	apart    bool          // half the farms from the others
	lies     int           // that came
	reads    map[string]int
	runs     []string       // by their places in the root
	place    map[string]int // of each
	size     int            // of a run, where links carry it; 0 for delays only
	origin   link
	ups      map[string]*uplink // of farms
	requests int                // at the origin
	trace    *strings.Builder
	named    plan.Sight // what the origin has under the name that is looked for
	steps    int
	most     int // of them
	// news is how often those who watch a node hear of what has come; 0 for at once.
	news   time.Duration
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
	holds   []bool                 // by run
	view    []plan.Peer            // nil for all that live
	swarm   map[string][]plan.Peer // what it has found
	settled bool
	refers  plan.Peer // refers everybody to that one
	names   names

	mind    *plan.Member
	root    *plan.Root
	objects map[int]*plan.Object // by run
	crowds  [2]*crowds.Of[int]   // of its farm's members, and of others
	watched map[*node]bool       // by whom: whether far
	order   []*node              // of those
	fresh   [2]*content.Bitmap   // what those of the farm, and those far away, are to hear of
	shown   content.Bitmap       // to those far away: what others of the farm hold, too
	reading map[int][]func(ok bool)
	asked   map[int]func() // what to do for those who wait for it when it dies
	in, out link
	up      *uplink
	waits   map[*plan.Flight][]func(ok bool)
	flown   map[*plan.Flight]*flight
}

// flight is a job that a node carries out.
type flight struct {
	n     *node
	run   int
	job   *plan.Job
	cfg   plan.Config
	own   []*plan.Flight
	asks  []*sending // those under way
	ended bool
}

func newMesh() *mesh {
	return &mesh{nodes: map[plan.Peer]*node{}, farms: map[string][]plan.Peer{}, delay: 50 * time.Millisecond, reads: map[string]int{}, place: map[string]int{}, ups: map[string]*uplink{}, most: stepsMax, trace: new(strings.Builder)}
}

func (m *mesh) add(farm string, name plan.Peer) *node {
	if m.ups[farm] == nil {
		m.ups[farm] = &uplink{holds: map[int]int{}}
	}
	n := &node{m: m, name: name, farm: farm, origin: true, settled: true, up: m.ups[farm], holds: make([]bool, len(m.runs))}
	n.begin()
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
	m.queue.push(event{m.now + d, m.seq, do, idle})
}

// stepsMax is more than any test takes: a mesh that goes on is one that never
// ends.
const stepsMax = 500_000

func (m *mesh) play() {
	for e, ok := m.queue.pop(); ok; e, ok = m.queue.pop() {
		if m.steps++; m.steps > m.most {
			panic("the mesh does not come to rest")
		}
		if e.idle != nil && e.idle() {
			continue
		}
		m.now = e.at
		e.do()
	}
}

func (m *mesh) say(format string, args ...any) {
	if m.trace == nil {
		return
	}
	fmt.Fprintf(m.trace, "%5dms  %s\n", m.now.Milliseconds(), fmt.Sprintf(format, args...))
}

func (m *mesh) clock() time.Time { return epoch.Add(m.now) }

// begin gives a node a mind that knows nobody.
func (n *node) begin() {
	n.mind = plan.NewMember(n.name, n.farm)
	n.mind.Asks, n.mind.Searches = true, true
	n.root = n.mind.Root("root")
	n.objects, n.watched, n.waits, n.flown = map[int]*plan.Object{}, map[*node]bool{}, map[*plan.Flight][]func(bool){}, map[*plan.Flight]*flight{}
	n.crowds = [2]*crowds.Of[int]{crowds.New[int](n.name, 0), crowds.New[int](n.name, crowds.Busy)}
	n.shown, n.order = content.Bitmap{}, nil
	n.reading, n.asked = map[int][]func(bool){}, map[int]func(){}
}

// meet has all nodes know what they may of all others, from now on.
func (m *mesh) meet() {
	for _, n := range m.nodes {
		n.begin()
	}
	for _, p := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[p]
		n.mind.Farm(n.view)
		if n.view == nil {
			n.mind.Farm(m.farms[n.farm])
		}
		if n.budget {
			n.mind.Count(m.clock(), 1<<40)
		}
		n.root.Want(m.clock().Add(-map[bool]time.Duration{true: plan.SwarmWait}[n.settled]))
		for _, farm := range slices.Sorted(maps.Keys(n.swarm)) {
			for _, q := range n.swarm[farm] {
				n.root.Announced(q, m.clock())
				n.root.List(q, farm)
				if other := m.nodes[q]; other != nil && !n.blind && !n.cold {
					n.watch(other, true)
				}
			}
		}
		if !n.cold {
			n.watchFarm()
		}
	}
}

func (n *node) watchFarm() {
	for _, q := range n.root.Strangers() {
		n.root.Met(q, false)
	}
	for _, q := range n.m.farms[n.farm] { // also of those that it does not see it has bitmaps
		if q != n.name && !n.blind {
			n.watch(n.m.nodes[q], false)
		}
	}
}

// watch has a node see what another one holds, now and later.
func (n *node) watch(other *node, far bool) {
	if other.dead {
		return
	}
	if _, ok := other.watched[n]; !ok {
		other.order = append(other.order, n)
	}
	if other.watched[n] = far; !far {
		other.mind.Seen(n.name, n.m.clock())
	}
	var b content.Bitmap
	for run := range n.m.runs {
		if other.holds[run] || other.shows || far && other.knows(run) {
			b.Add(uint64(run))
		}
	}
	n.sees(&b, far)
	_ = n.root.Show(other.name, far, true, &b)
}

// run returns the place of a run in the root.
func (m *mesh) run(name string) int {
	place, ok := m.place[name]
	if !ok {
		place = len(m.runs)
		m.place[name], m.runs = place, append(m.runs, name)
	}
	for _, n := range m.nodes {
		for len(n.holds) < len(m.runs) {
			n.holds = append(n.holds, false)
		}
	}
	return place
}

// try asks a member whether it is back.
func (n *node) try(p plan.Peer) {
	delay := 2 * wanDelay
	if to := n.m.nodes[p]; to == nil || to.dead {
		delay = silence
	}
	n.m.after(delay, func() {
		if to := n.m.nodes[p]; to == nil || to.dead {
			n.mind.Fail(p, n.m.clock())
			return
		}
		n.mind.Work(p, n.m.clock())
	})
}

// want begins or joins a flight; done is called when it has ended.
func (n *node) want(run int, cfg plan.Config, done func(ok bool)) *plan.Flight {
	if n.holds[run] {
		done(true)
		return nil
	}
	o := n.objects[run]
	if o == nil {
		o = new(plan.Object)
		n.objects[run] = o
	}
	cfg.Key, cfg.Root = n.m.runs[run], n.root
	own, job := n.mind.Join(cfg, []plan.Wanted{{Object: o, Index: uint64(run), Size: runSize}})
	n.waits[own[0]] = append(n.waits[own[0]], done)
	if job == nil {
		n.m.joined++
		return own[0]
	}
	f := &flight{n: n, run: run, job: job, cfg: cfg, own: own}
	n.flown[own[0]] = f
	f.step(plan.Event{Kind: plan.Start})
	return own[0]
}

// land has a node hold a run from now on.
func (n *node) land(run int) {
	if n.dead {
		return
	}
	n.hold(run)
	if o := n.objects[run]; o != nil {
		for fl := range o.Flights {
			n.end(run, fl, true)
		}
	}
}

// hold tells those who watch a node that it has a run now.
func (n *node) hold(run int) {
	n.holds[run] = true
	n.up.holds[run]++
	n.show(run, false)
	n.show(run, true)
}

// knows reports whether a node shows a run to those far away.
func (n *node) knows(run int) bool { return n.holds[run] || n.shown.Has(uint64(run)) }

// show has those who watch a node hear soon of a run that it holds or, those far away, that
// a member of its farm does.
func (n *node) show(run int, far bool) {
	at := 0
	if far {
		if n.shown.Has(uint64(run)) {
			return
		}
		at = 1
		n.shown.Add(uint64(run))
	}
	if n.fresh == [2]*content.Bitmap{} {
		n.m.after(n.m.news, n.tell)
	}
	if n.fresh[at] == nil {
		n.fresh[at] = new(content.Bitmap)
	}
	n.fresh[at].Add(uint64(run))
	if n.m.news == 0 {
		n.tell()
	}
}

// tell has those who watch a node hear of what has come since.
func (n *node) tell() {
	fresh := n.fresh
	if n.fresh = [2]*content.Bitmap{}; n.dead {
		return
	}
	for _, other := range n.order { // the same at each replay
		far := n.watched[other]
		if f := fresh[map[bool]int{true: 1}[far]]; f != nil {
			if n.m.cut(n, other) {
				continue // it hears anew
			}
			other.sees(f, far)
			_ = other.root.Show(n.name, far, false, f.Clone())
		}
	}
}

// cut reports whether nodes don't reach each other.
func (m *mesh) cut(a, b *node) bool { return m.apart && a.farm != b.farm && a.half() != b.half() }

// half is the one that its farm is of.
func (n *node) half() bool { return n.farm[len(n.farm)-1]%2 == 0 }

// sees has a node show what one of its farm does.
func (n *node) sees(b *content.Bitmap, far bool) {
	for run := range b.All {
		if !far {
			n.show(int(run), true)
		}
	}
}

func (n *node) end(run int, fl *plan.Flight, ok bool) {
	if _, first := fl.End(); !first {
		return
	}
	fl.LeaveOut()
	if o := n.objects[run]; o != nil && o.Idle() {
		delete(n.objects, run)
	}
	waits := n.waits[fl]
	delete(n.waits, fl)
	delete(n.flown, fl)
	for _, done := range waits {
		done(ok)
	}
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
	n := f.n
	if n.dead {
		return
	}
	if n.holds[f.run] { // a more urgent flight may have hidden this one
		for _, fl := range f.own {
			n.end(f.run, fl, true)
		}
	}
	n.mind.Origin = n.origin && !n.m.down
	e.Job = f.job
	acts := n.mind.Step(n.m.clock(), e)
	if f.ended && len(acts) > 0 {
		panic(fmt.Sprintf("%s acts after the end: %v", n.name, acts))
	}
	for _, a := range acts {
		f.act(a)
	}
	if !f.ended {
		f.wake()
	}
}

func (f *flight) act(a plan.Action) {
	n := f.n
	switch a.Kind {
	case plan.Ask:
		if n.m.trace != nil {
			how := map[bool]string{true: " to bring it in", false: ""}[a.Fetch] + map[bool]string{true: ", passed on", false: ""}[a.Passed]
			n.m.say("%s asks %s%s", n.name, a.Peer, how)
		}
		f.asks = append(f.asks, n.send(f.run, a, f.cfg, f.step))
	case plan.Drop:
		n.m.say("%s drops %s", n.name, a.Peer)
		f.drop(a.Peer)
		n.mind.Stall(a.Peer, n.m.clock(), a.Quiet)
	case plan.Try:
		n.try(a.Peer)
	case plan.ReadOrigin:
		if n.m.trace != nil {
			n.m.say("%s reads the origin%s", n.name, map[bool]string{true: ", a hedge", false: ""}[a.Hedge])
		}
		n.read(f.run, func(ok bool) {
			why := ""
			if !ok {
				why = "connection refused"
			}
			f.step(plan.Event{Kind: plan.OriginEnded, Why: why})
		})
	default:
		f.wait(a)
	}
}

// wait carries out the actions that wait, and those that end the job.
func (f *flight) wait(a plan.Action) {
	n := f.n
	waited := func() { f.step(plan.Event{Kind: plan.Waited}) }
	switch a.Kind {
	case plan.WaitFarm:
		n.m.say("%s waits for bitmaps", n.name)
		n.m.after(2*lanDelay, func() {
			if n.cold {
				n.cold = false
				n.watchFarm()
			}
			waited()
		})
	case plan.WaitSwarm:
		n.m.say("%s waits for announcements", n.name)
		n.m.after(a.Wait, func() { n.settled = true; waited() })
	case plan.WaitReads:
		once := sync.OnceFunc(waited)
		n.reading[f.run] = append(n.reading[f.run], func(bool) { once() })
		n.m.unless(f.job.ReadingWait(), func() bool { return f.ended }, once)
	case plan.Done, plan.Fail:
		f.ended = true
		f.drop("")
		if a.Kind == plan.Fail {
			n.m.say("%s fails: %s", n.name, tried(a.Tried))
		}
		for _, fl := range f.own {
			n.end(f.run, fl, a.Kind == plan.Done)
		}
	}
}

// drop ends the ask of a member, or all.
func (f *flight) drop(p plan.Peer) {
	for _, s := range f.asks {
		if p == "" || s.act.Peer == p {
			s.drop()
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

func (n *node) lives() bool { return !n.dead }

// die ends a node: what it was asked stays unanswered.
func (n *node) die() {
	n.dead = true
	n.m.say("%s dies", n.name)
	for _, id := range slices.Sorted(maps.Keys(n.asked)) {
		n.asked[id]()
	}
	clear(n.asked)
	clear(n.waits)
	clear(n.flown)
	clear(n.reading)
	for other := range n.watched {
		other.root.Drop(n.name)
	}
}
