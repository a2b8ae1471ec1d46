// Package planner_test plays the product's own plan.Member in virtual time: the ladder of
// a run line by line, properties of small meshes, and a large one.
package planner_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/simulations/soak"
)

// seed replays a mesh.
var seed = flag.Uint64("planner.seed", 1, "of the crowd's random numbers")

const (
	// announceDelay is what an announcement takes until others find it, and searchDelay
	// what a search takes.
	announceDelay = 100 * time.Millisecond
	searchDelay   = 100 * time.Millisecond
	// announceInterval, newsInterval and window are node/fetch's: how often it is decided
	// who announces, how often bitmaps grow, and how many runs a prefetch has under way.
	announceInterval = 5 * time.Second
	newsInterval     = 250 * time.Millisecond
	window           = 8
	// startsWithin is how far apart the nodes begin.
	startsWithin = 50 * time.Millisecond
)

// crowd is nodes that have nothing and warm one image at once.
type crowd struct {
	*mesh
	rng  *rand.Rand
	runs []string
	done int
}

func newCrowd(seed uint64, farms, nodes, runs int) *crowd {
	c := &crowd{mesh: newMesh(), rng: rand.New(rand.NewPCG(seed, 0))}
	c.trace, c.news, c.most = nil, newsInterval, 1<<62
	for i := range runs {
		c.runs = append(c.runs, fmt.Sprintf("mesh/2026112022-%032x/%d", i/32, i%32))
		c.place(c.runs[i])
	}
	for f := range farms {
		for i := range nodes {
			c.add(fmt.Sprint("farm", f), plan.Peer(fmt.Sprintf("n%d.%d", f, i)))
		}
	}
	for _, n := range c.all() {
		n.mind.Farm(c.farms[n.farm])
		c.after(time.Duration(c.rng.Int64N(int64(startsWithin))), func() { c.warm(n) })
	}
	return c
}

// warm is what node/fetch does: it follows the root, waits for announcements, and asks
// for the runs that the node leads first.
func (c *crowd) warm(n *node) {
	if n.root.Want(c.clock()) {
		c.follow(n)
	}
	var led, others []string
	for _, run := range c.runs {
		if n.mind.Leads(run) {
			led = append(led, run)
		} else {
			others = append(others, run)
		}
	}
	left := append(led, others...)
	under := len(left)
	var next func(bool)
	next = func(ok bool) {
		if !ok {
			panic(fmt.Sprintf("%s: a run can't be had", n.name))
		}
		if under--; under == 0 {
			c.done++
		}
		if len(left) > 0 {
			run := left[0]
			left = left[1:]
			n.root.Want(c.clock())
			n.want(run, plan.Config{}, next)
		}
	}
	c.after(plan.SwarmWait, func() {
		for range min(window, len(left)) {
			run := left[0]
			left = left[1:]
			n.want(run, plan.Config{}, next)
		}
	})
}

func (c *crowd) follow(n *node) {
	for _, q := range n.root.Strangers() {
		c.after(2*lanDelay, func() {
			n.watch(c.nodes[q], false)
			n.root.Met(q, false)
		})
	}
	c.announce(n, false)
	c.search(n)
}

func (c *crowd) over() bool { return c.done == len(c.nodes) }

// announce decides again and again whether a node announces.
func (c *crowd) announce(n *node, does bool) {
	if !does && n.mind.Announces(n.root, func() string { return "root" }, len(n.holds) > 0, c.clock()) {
		does = true
		c.after(announceDelay, func() { c.announced = append(c.announced, n) })
	}
	c.unless(announceInterval, c.over, func() { c.announce(n, does) })
}

// search finds those that have announced, again and again, and meets them.
func (c *crowd) search(n *node) {
	c.unless(searchDelay, c.over, func() {
		for _, other := range c.announced {
			if n.root.Announced(other.name, c.clock()) {
				c.after(2*wanDelay, func() {
					n.watch(other, true)
					n.root.List(other.name, other.farm)
				})
			}
		}
		c.unless(n.root.NextSearch(c.clock()), c.over, func() { c.search(n) })
	})
}

// originShare is how much of an image a whole cold mesh may read at the origin: see the
// bars of the design.
const originShare = 1.1

// TestColdMeshReadsOnce: a thousand nodes in fifty farms, all of which begin at once and
// have nothing, read the origin for the image about once, and each has it in the end.
func TestColdMeshReadsOnce(t *testing.T) {
	farms, nodes, runs := 50, 20, 256
	if !soak.Full() {
		farms, nodes, runs = 20, 10, 64
	}
	c := newCrowd(*seed, farms, nodes, runs)
	begun := time.Now()
	c.run()
	total := 0
	for _, n := range c.reads {
		total += n
	}
	t.Logf("seed %d: %d nodes in %d farms, %d runs: %d reads of the origin, %d events, %s of theirs in %s of ours", *seed, farms*nodes, farms, runs, total, c.steps, c.now, time.Since(begun))
	if c.done != farms*nodes {
		t.Errorf("%d of %d nodes have the image", c.done, farms*nodes)
	}
	if float64(total) > originShare*float64(runs) {
		t.Errorf("%d reads of the origin for %d runs", total, runs)
	}
	for _, n := range c.all() {
		if len(n.holds) != runs {
			t.Errorf("%s has %d runs", n.name, len(n.holds))
		}
	}
}

// TestASeedReplaysAMesh line by line.
func TestASeedReplaysAMesh(t *testing.T) {
	play := func(seed uint64) string {
		c := newCrowd(seed, 6, 4, 16)
		c.trace = new(strings.Builder)
		c.run()
		return c.trace.String()
	}
	first, again, other := play(*seed), play(*seed), play(*seed+1)
	if first != again || first == other {
		t.Errorf("the same seed plays the same: %t, another one something else: %t", first == again, first != other)
	}
}
