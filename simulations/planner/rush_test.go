package planner_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// runSize is a run's, in bytes: an image of 256 runs has 256 MiB.
	runSize = 1 << 20
	// announceInterval, newsInterval and leaf are node/fetch's: how often it is decided who
	// announces, how often bitmaps grow, and of how many runs one map node is.
	announceInterval = 5 * time.Second
	newsInterval     = 250 * time.Millisecond
	leaf             = 128
	// lookInterval is how often a node looks for members of its farm that are new to it.
	lookInterval = time.Second
	// noticed is how long the farm's gossip takes to notice a death.
	noticed = 5 * time.Second
	// startsWithin is how far apart the nodes begin.
	startsWithin = 50 * time.Millisecond
)

// What a DHT gives: a search yields so many members, which have announced some time
// before; a tenth of them are gone.
const (
	searchDelay   = 200 * time.Millisecond
	firstMax      = 10 // of them, that rank first
	foundLate     = 500 * time.Millisecond
	foundLatest   = 2 * time.Second
	foundMax      = 20
	goneShare     = 10
	originDelay   = 50 * time.Millisecond
	meetingRounds = 2
)

// rush is nodes that have nothing and warm one image at once, over links.
type rush struct {
	*mesh
	rng       *rand.Rand
	announced []plan.Peer
	begun     map[*node]bool
	took      []time.Duration
	starts    time.Duration // the last one's
}

// rushing is what a rush is made of.
type rushing struct {
	seed               uint64
	farms, nodes, runs int
	size               int // of a run
	loss               int // of its farm's members a node does not see, in percent
	kill               int // of the nodes after a while, in percent
	// follow says that the nodes follow a tag that has moved, and that the runs are those
	// that are new.
	follow bool
	// liars and slow are so many of the nodes, in percent: those that show everything and
	// send wrong bytes, and those that send a hundredth as fast. apart and brown say that
	// for a while half the farms don't reach the others, and that the origin fails.
	liars, slow  int
	apart, brown bool
}

// Faults last from faultsAt, when nothing is whole yet, to faultsEnd.
const (
	faultsAt  = 2800 * time.Millisecond
	faultsEnd = 6 * time.Second
	slowness  = 100
)

func newRush(r rushing) *rush {
	c := &rush{mesh: newMesh(), rng: rand.New(rand.NewPCG(r.seed, 0)), begun: map[*node]bool{}}
	c.trace, c.news, c.most, c.delay, c.size = nil, newsInterval, 1<<62, originDelay, r.size
	c.origin.rate = originRate
	for i := range r.runs {
		c.run(fmt.Sprintf("mesh/2026112022-%032x/%d", i/32, i%32))
	}
	for f := range r.farms {
		farm := fmt.Sprint("farm", f)
		for i := range r.nodes {
			n := c.add(farm, plan.Peer(fmt.Sprintf("n%d.%d", f, i)))
			n.in.rate, n.out.rate = nodeRate, nodeRate
		}
		c.ups[farm].in.rate, c.ups[farm].out.rate = uplinkRate, uplinkRate
	}
	for i := range 2 * r.farms / goneShare {
		c.announces(plan.Peer(fmt.Sprint("gone", i)))
	}
	for f := range r.farms {
		if r.follow { // they have announced what the tag stood for
			for _, p := range plan.Rank("root", c.farms[fmt.Sprint("farm", f)])[:2] {
				c.announces(p)
			}
		}
	}
	for _, n := range c.all() {
		c.see(n, r.loss)
		if c.fault(n, r) {
			continue
		}
		starts := time.Duration(c.rng.Int64N(int64(startsWithin)))
		if r.follow {
			starts += follow.Delay(string(n.name), "tag", 2, r.farms*r.nodes)
		}
		c.starts = max(c.starts, starts)
		c.after(starts, func() { c.warm(n) })
	}
	c.after(faultsAt, func() { c.down, c.apart = r.brown, r.apart })
	c.after(faultsEnd, func() {
		c.down, c.apart = false, false
		if r.apart {
			c.anew()
		}
	})
	if r.kill > 0 {
		image := time.Duration(float64(r.size*r.runs) / uplinkRate * float64(time.Second))
		if r.farms > 1 {
			image += plan.SwarmWait
		}
		c.after(image/2, func() { c.kill(r.kill) })
	}
	return c
}

// fault makes a node what some are, and reports whether it wants nothing.
func (c *rush) fault(n *node, r rushing) bool {
	if c.rng.IntN(100) < r.slow {
		n.out.rate /= slowness
	}
	if n.liar = c.rng.IntN(100) < r.liars; n.liar {
		n.shows = true
		c.announces(n.name)
	}
	return n.liar
}

// anew has all who watch others hear anew what those show.
func (c *rush) anew() {
	for _, n := range c.all() {
		for _, other := range n.order {
			other.watch(n, n.watched[other])
		}
	}
}

// see has a node see its farm, but for some.
func (c *rush) see(n *node, loss int) {
	n.view = slices.DeleteFunc(slices.Clone(c.farms[n.farm]), func(p plan.Peer) bool { return p != n.name && c.rng.IntN(100) < loss })
	n.mind.Farm(n.view)
}

// warming is one prefetch.
type warming struct {
	c       *rush
	n       *node
	order   *plan.Order
	began   time.Duration
	added   int // runs,
	left    int // of which have not come
	flights map[*plan.Ordered]*plan.Flight
	looks   bool // again, after a while
}

// warm is what node/fetch does: it follows the root, and asks for the runs in the order that
// the planner says.
func (c *rush) warm(n *node) {
	c.begun[n] = true
	c.follow(n)
	w := &warming{c: c, n: n, order: n.root.Order(), began: c.now, left: len(c.runs), flights: map[*plan.Ordered]*plan.Flight{}}
	w.ask()
}

// ask asks for all that can be had now.
func (w *warming) ask() {
	c := w.c
	if w.n.dead || w.left == 0 {
		return
	}
	for {
		for w.added < len(c.runs) && w.order.Wants(c.clock()) {
			for range min(leaf, len(c.runs)-w.added) {
				w.order.Add(c.runs[w.added], uint64(w.added), w.added)
				w.added++
			}
		}
		if w.added == len(c.runs) {
			w.order.Whole()
		}
		o := w.order.Next(c.clock())
		if o == nil {
			break
		}
		w.n.root.Want(c.clock())
		w.flights[o] = w.n.want(o.Of.(int), plan.Config{Ask: o.Ask}, func(ok bool) { w.came(o, ok) })
	}
	if !w.looks && w.order.Left() > 0 {
		w.looks = true
		c.after(plan.SettleLook, func() {
			w.looks = false
			w.ask()
		})
	}
}

func (w *warming) came(o *plan.Ordered, ok bool) {
	c := w.c
	if !ok {
		panic(fmt.Sprintf("%s: a run can't be had", w.n.name))
	}
	delete(w.flights, o)
	for _, other := range w.order.Came(o) {
		if f := w.n.flown[w.flights[other]]; f != nil {
			f.step(plan.Event{Kind: plan.Endgame})
		}
	}
	if w.left--; w.left == 0 {
		w.order.End()
		c.took = append(c.took, c.now-w.began)
		delete(c.begun, w.n)
	}
	c.after(0, w.ask)
}

func (c *rush) over() bool { return len(c.begun) == 0 && c.now > c.starts }

func (c *rush) follow(n *node) {
	n.root.Want(c.clock())
	c.look(n)
	c.announce(n, false)
	c.search(n)
}

// look watches the members of the farm that are new to a node, again and again.
func (c *rush) look(n *node) {
	for _, q := range n.root.Strangers() {
		c.after(meetingRounds*lanDelay, func() {
			n.root.Met(q, false)
			n.watch(c.nodes[q], false)
		})
	}
	c.unless(lookInterval, func() bool { return c.over() || n.dead }, func() { c.look(n) })
}

// announce decides again and again whether a node announces.
func (c *rush) announce(n *node, does bool) {
	if !does && n.mind.Announces(n.root, slices.Contains(n.holds, true), c.clock()) {
		does = true
		c.after(foundLate+time.Duration(c.rng.Int64N(int64(foundLatest-foundLate))), func() { c.announces(n.name) })
	}
	c.unless(announceInterval, func() bool { return c.over() || n.dead }, func() { c.announce(n, does) })
}

// search finds some of those that have announced, again and again, and meets them.
func (c *rush) search(n *node) {
	over := func() bool { return c.over() || n.dead }
	c.unless(searchDelay, over, func() {
		c.found(func(p plan.Peer) {
			if p != n.name && n.root.Announced(p, c.clock()) {
				c.meet(n, p)
			}
		})
		n.root.Searched(len(c.farms) > 1)
		c.unless(n.root.NextSearch(c.clock()), over, func() { c.search(n) })
	})
}

// found yields what a search gives: the announcers that rank first, and others.
func (c *rush) found(yield func(plan.Peer)) {
	first := min(len(c.announced), firstMax)
	for _, p := range c.announced[:first] {
		yield(p)
	}
	rest := c.announced[first:]
	for i := range min(len(rest), foundMax-firstMax) {
		j := i + c.rng.IntN(len(rest)-i)
		rest[i], rest[j] = rest[j], rest[i]
		yield(rest[i])
	}
}

// announces has an announcement found from now on, in its place.
func (c *rush) announces(p plan.Peer) {
	rank := func(q plan.Peer) uint64 { return content.Weight("root", string(q)) }
	c.announced = append(c.announced, p)
	for i := range min(len(c.announced), firstMax) {
		if last := len(c.announced) - 1; rank(c.announced[last]) > rank(c.announced[i]) {
			c.announced[i], c.announced[last] = c.announced[last], c.announced[i]
		}
	}
}

// meet has a node meet a member of another farm, and watch it.
func (c *rush) meet(n *node, p plan.Peer) {
	other := c.nodes[p]
	if other == nil || other.dead || c.cut(n, other) {
		c.after(silence, func() {
			n.mind.Fail(p, c.clock())
			n.root.Release(p, true)
		})
		return
	}
	c.after(meetingRounds*wanDelay, func() {
		n.watch(other, true)
		n.root.List(p, other.farm)
	})
}

// kill ends so many in a hundred nodes; the others of their farms notice.
func (c *rush) kill(percent int) {
	for _, n := range c.all() {
		if c.rng.IntN(100) >= percent {
			continue
		}
		if n.die(); len(c.begun) > 0 {
			delete(c.begun, n)
		}
		c.after(noticed, func() {
			for _, p := range c.farms[n.farm] {
				if other := c.nodes[p]; !other.dead {
					other.view = slices.DeleteFunc(slices.Clone(other.view), func(q plan.Peer) bool { return q == n.name })
					other.mind.Farm(other.view)
				}
			}
		})
	}
}
