package planner_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

// drawMesh is some farms, whose announcements all others have found or not.
func drawMesh(t *rapid.T, farms, nodes int) *mesh {
	m := newMesh()
	for f := range rapid.IntRange(1, farms).Draw(t, "farms") {
		for i := range rapid.IntRange(1, nodes).Draw(t, "nodes") {
			m.add(fmt.Sprintf("farm%d", f), plan.Peer(fmt.Sprintf("n%d.%d", f, i)))
		}
	}
	return m
}

// all returns the nodes in a fixed order.
func (m *mesh) all() []*node {
	var out []*node
	for _, n := range m.nodes {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *node) int { return slices.Compare([]byte(a.name), []byte(b.name)) })
	return out
}

// TestOncePerFarm: without faults a run crosses a farm's uplink once, whoever
// asks and whenever.
func TestOncePerFarm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMesh(t, 3, 9)
		m.delay = time.Duration(rapid.IntRange(0, 3000).Draw(t, "origin")) * time.Millisecond
		asked := map[string]bool{}
		m.meet()
		for _, n := range m.all() {
			if rapid.Bool().Draw(t, "asks") {
				guest := rapid.Bool().Draw(t, "guest")
				asked[n.farm] = true
				m.after(time.Duration(rapid.IntRange(0, 200).Draw(t, "at"))*time.Millisecond, func() {
					n.want(m.run("r"), plan.Config{Guest: guest, Hurry: guest}, func(ok bool) {
						if !ok {
							t.Fatalf("%s failed", n.name)
						}
					})
				})
			}
		}
		m.play()
		for farm := range m.farms {
			if want := map[bool]int{true: 1}[asked[farm]]; m.reads[farm] != want {
				t.Fatalf("%s read the origin %d times, want %d\n%s", farm, m.reads[farm], want, m.trace)
			}
		}
	})
}

// TestOncePerMesh: with announcements that all have found, farms share one read.
func TestOncePerMesh(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMesh(t, 6, 4)
		for _, n := range m.all() {
			n.swarm = map[string][]plan.Peer{}
			for farm, members := range m.farms {
				if farm != n.farm {
					n.swarm[farm] = members[:min(2, len(members))]
				}
			}
		}
		m.meet()
		for _, n := range m.all() {
			m.after(time.Duration(rapid.IntRange(0, 200).Draw(t, "at"))*time.Millisecond, func() {
				n.want(m.run("r"), plan.Config{}, func(bool) {})
			})
		}
		m.play()
		total := 0
		for _, reads := range m.reads {
			total += reads
		}
		if total != 1 {
			t.Fatalf("%d reads of the origin, want 1: %v\n%s", total, m.reads, m.trace)
		}
	})
}

const (
	// endsWithin is longer than any want may take, whoever stalls: a hard deadline for
	// each that is asked to bring something in. guestEndsWithin is how long a guest
	// waits at most where its node reads the origin, which takes three seconds here.
	endsWithin      = 10 * time.Minute
	guestEndsWithin = 15 * time.Second
)

// TestEveryWantEnds: whatever the views, whoever dies, lies, stalls for ever or lacks
// an origin, each want of a live node ends in bounded time, and it ends well when
// the node can read the origin, or sees a live, honest member that has the run.
func TestEveryWantEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMesh(t, 4, 6)
		m.delay = time.Duration(rapid.IntRange(0, 3000).Draw(t, "origin")) * time.Millisecond
		all := m.all()
		subset := func(of []plan.Peer, label string) []plan.Peer {
			var out []plan.Peer
			for _, p := range of {
				if rapid.Bool().Draw(t, label) {
					out = append(out, p)
				}
			}
			return out
		}
		for _, n := range all {
			n.view = append(subset(m.farms[n.farm], "sees"), n.name)
			n.swarm = map[string][]plan.Peer{}
			for _, other := range slices.Sorted(keys(m.farms)) {
				if other != n.farm && rapid.Bool().Draw(t, "found") {
					n.swarm[other] = subset(m.farms[other], "announcer")
				}
			}
			n.origin, n.liar = rapid.Bool().Draw(t, "can read"), rapid.IntRange(0, 9).Draw(t, "liar") == 0
			n.blind, n.budget, n.settled = rapid.Bool().Draw(t, "blind"), rapid.Bool().Draw(t, "budget"), rapid.Bool().Draw(t, "settled")
			n.cold = rapid.Bool().Draw(t, "cold")
			n.dead = rapid.IntRange(0, 5).Draw(t, "dead") == 0
			n.staller = rapid.IntRange(0, 3).Draw(t, "stalls") == 0
			n.shows = n.staller && rapid.Bool().Draw(t, "shows")
			n.holds[m.run("r")] = rapid.IntRange(0, 19).Draw(t, "holds") == 0
			if rapid.IntRange(0, 5).Draw(t, "dies") == 0 {
				m.after(time.Duration(rapid.IntRange(0, 3000).Draw(t, "at"))*time.Millisecond, n.die)
			}
		}
		m.run("r")
		m.meet()
		ended, began := map[*node]bool{}, map[*node]time.Duration{}
		for _, n := range all {
			if n.dead || n.liar || n.staller {
				continue
			}
			guest := rapid.Bool().Draw(t, "guest")
			m.after(time.Duration(rapid.IntRange(0, 3000).Draw(t, "wants"))*time.Millisecond, func() {
				if n.dead {
					return
				}
				began[n] = m.now
				n.want(m.run("r"), plan.Config{Guest: guest, Hurry: guest}, func(ok bool) {
					if ended[n] {
						t.Fatalf("%s ended twice", n.name)
					}
					ended[n] = true
					if took := m.now - began[n]; took > endsWithin || guest && n.origin && took > guestEndsWithin {
						t.Fatalf("%s, guest %t, waited for %s\n%s", n.name, guest, took, m.trace)
					}
					if !ok && n.origin && !n.dead {
						t.Fatalf("%s failed though it reads the origin\n%s", n.name, m.trace)
					}
				})
			})
		}
		m.play()
		for n := range began {
			if !ended[n] && !n.dead {
				t.Fatalf("%s still waits\n%s", n.name, m.trace)
			}
		}
	})
}

func keys[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

var epoch = time.Unix(1_800_000_000, 0)

// TestJobBounds: a job asks a bounded number of members, whatever it is told.
func TestJobBounds(t *testing.T) {
	const actsMax = 150
	rapid.Check(t, func(t *rapid.T) {
		var everybody []plan.Peer
		for i := range 300 {
			everybody = append(everybody, plan.Peer(fmt.Sprint("p", i)))
		}
		m := plan.NewMember("p0", "f")
		m.Farm(everybody[:100])
		m.Origin, m.Asks, m.Searches = true, true, true
		m.Count(epoch, 1<<40)
		root := m.Root("root")
		root.Want(epoch)
		for i, p := range everybody {
			var all content.Bitmap
			all.Add(0)
			if err := root.Show(p, i >= 100, true, &all); err != nil {
				t.Fatal(err)
			}
			switch {
			case i < 50:
				m.Provided(p)
			case i >= 100:
				root.List(p, fmt.Sprint("farm", i/100))
			}
		}
		guest := rapid.Bool().Draw(t, "guest")
		_, j := m.Join(plan.Config{
			Key: "r", Root: root, Depth: plan.Depth(rapid.IntRange(0, plan.Depths-1).Draw(t, "depth")), Guest: guest, Hurry: guest,
		}, []plan.Wanted{{Object: new(plan.Object)}})
		now := epoch
		open := m.Step(now, plan.Event{Kind: plan.Start, Job: j})
		for acts := 0; len(open) > 0; acts++ {
			if acts > actsMax {
				t.Fatalf("more than %d actions", actsMax)
			}
			a := open[0]
			open = open[1:]
			if a.Kind == plan.Fail {
				if late := m.Step(now, plan.Event{Kind: plan.Woke, Job: j}); len(open) > 0 || len(late) > 0 {
					t.Fatalf("goes on after the end: %v %v", open, late)
				}
				if len(a.Tried) == 0 || len(a.Tried) > 20 {
					t.Fatalf("%d sources are listed", len(a.Tried))
				}
				return
			}
			if a.Kind == plan.Drop || a.Kind == plan.Try {
				continue
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "ms")) * time.Millisecond)
			open = append(open, m.Step(now, plan.Event{Kind: plan.Woke, Job: j})...)
			m.Origin = rapid.Bool().Draw(t, "origin")
			e := plan.Event{Job: j, Peer: a.Peer, Why: rapid.SampledFrom([]string{"", "silent"}).Draw(t, "why")}
			e.Kind = map[plan.ActionKind]plan.EventKind{plan.Ask: plan.Answered, plan.ReadOrigin: plan.OriginEnded, plan.WaitSwarm: plan.Waited, plan.WaitFarm: plan.Waited}[a.Kind]
			if a.Kind == plan.Ask && rapid.Bool().Draw(t, "refers") {
				e.Refer = rapid.SampledFrom(everybody).Draw(t, "to")
			}
			open = append(open, m.Step(now, e)...)
		}
		t.Fatalf("the job ended without saying so")
	})
}

// TestNoSourceHoldsAJob: whatever the members do that are asked, a job ends well and
// in bounded time if one that shows what is missing would give it, or the origin.
func TestNoSourceHoldsAJob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMesh()
		n := m.add("north", "n")
		n.swarm = map[string][]plan.Peer{}
		for i := range rapid.IntRange(1, 24).Draw(t, "members") {
			farm := rapid.SampledFrom([]string{"north", "south", "west"}).Draw(t, "farm")
			other := m.add(farm, plan.Peer(fmt.Sprint("m", i)))
			other.origin = false
			switch rapid.IntRange(0, 3).Draw(t, "is") {
			case 0:
				other.staller = true
			case 1:
				other.liar = true
			case 2:
				m.after(time.Duration(rapid.IntRange(0, 5000).Draw(t, "dies"))*time.Millisecond, other.die)
			}
			other.shows = rapid.Bool().Draw(t, "shows")
			if farm != "north" {
				n.swarm[farm] = append(n.swarm[farm], other.name)
			}
		}
		n.origin = rapid.Bool().Draw(t, "origin")
		if !n.origin {
			m.add("north", "holder").holds[m.run("r")] = true
		}
		m.run("r")
		m.meet()
		guest := rapid.Bool().Draw(t, "guest")
		ended := false
		n.want(m.run("r"), plan.Config{Guest: guest, Hurry: guest}, func(ok bool) {
			ended = true
			if !ok {
				t.Fatalf("it failed\n%s", m.trace)
			}
			if most := map[bool]time.Duration{true: 30 * time.Second, false: endsWithin}[guest]; m.now > most {
				t.Fatalf("it took %s\n%s", m.now, m.trace)
			}
		})
		m.play()
		if !ended {
			t.Fatalf("it still waits\n%s", m.trace)
		}
	})
}
