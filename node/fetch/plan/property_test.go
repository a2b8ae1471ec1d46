package plan_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/fetch/plan"
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
		for _, n := range m.all() {
			if rapid.Bool().Draw(t, "asks") {
				guest := rapid.Bool().Draw(t, "guest")
				asked[n.farm] = true
				m.after(time.Duration(rapid.IntRange(0, 200).Draw(t, "at"))*time.Millisecond, func() {
					n.want("r", plan.Config{Guest: guest, Hurry: guest}, func(ok bool) {
						if !ok {
							t.Fatalf("%s failed", n.name)
						}
					})
				})
			}
		}
		m.run()
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
		for _, n := range m.all() {
			m.after(time.Duration(rapid.IntRange(0, 200).Draw(t, "at"))*time.Millisecond, func() {
				n.want("r", plan.Config{}, func(bool) {})
			})
		}
		m.run()
		total := 0
		for _, reads := range m.reads {
			total += reads
		}
		if total != 1 {
			t.Fatalf("%d reads of the origin, want 1: %v\n%s", total, m.reads, m.trace)
		}
	})
}

// TestEveryWantEnds: whatever the views, whoever dies, lies or lacks an origin,
// each want of a live node ends, and it ends well when a live, honest member of
// its farm can read the origin.
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
			n.holds["r"] = rapid.IntRange(0, 19).Draw(t, "holds") == 0
			if rapid.IntRange(0, 5).Draw(t, "dies") == 0 {
				m.after(time.Duration(rapid.IntRange(0, 3000).Draw(t, "at"))*time.Millisecond, n.die)
			}
		}
		ended, began := map[*node]bool{}, map[*node]time.Duration{}
		for _, n := range all {
			if n.dead || n.liar {
				continue
			}
			guest := rapid.Bool().Draw(t, "guest")
			m.after(time.Duration(rapid.IntRange(0, 3000).Draw(t, "wants"))*time.Millisecond, func() {
				if n.dead {
					return
				}
				began[n] = m.now
				n.want("r", plan.Config{Guest: guest, Hurry: guest}, func(ok bool) {
					if ended[n] {
						t.Fatalf("%s ended twice", n.name)
					}
					ended[n] = true
					if !ok && n.origin && !n.dead {
						t.Fatalf("%s failed though it reads the origin\n%s", n.name, m.trace)
					}
				})
			})
		}
		m.run()
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

// TestJobBounds: a job asks a bounded number of members, whatever it is told.
func TestJobBounds(t *testing.T) {
	const actsMax = 150
	rapid.Check(t, func(t *rapid.T) {
		var everybody []plan.Peer
		for i := range 300 {
			everybody = append(everybody, plan.Peer(fmt.Sprint("p", i)))
		}
		v := plan.View{Farm: everybody[:100], Holders: everybody[:100], Swarm: map[string][]plan.Peer{"x": everybody[100:200], "y": everybody[200:]}, SwarmHolders: everybody[100:], Providers: everybody[:50], Origin: true, HedgeBudget: true}
		j := plan.New(plan.Config{
			Key: "r", Self: "p0", Farm: "f", Depth: plan.Depth(rapid.IntRange(0, plan.Depths-1).Draw(t, "depth")),
			Guest: rapid.Bool().Draw(t, "guest"),
		})
		open := j.Step(plan.Event{Kind: plan.Start, View: v})
		for acts := 0; len(open) > 0; acts++ {
			if acts > actsMax {
				t.Fatalf("more than %d actions", actsMax)
			}
			a := open[0]
			open = open[1:]
			if a.Kind == plan.Fail {
				if late := j.Step(plan.Event{Kind: plan.Hung, View: v}); len(open) > 0 || len(late) > 0 {
					t.Fatalf("goes on after the end: %v %v", open, late)
				}
				if len(a.Tried) == 0 || len(a.Tried) > 20 {
					t.Fatalf("%d sources are listed", len(a.Tried))
				}
				return
			}
			open = append(open, j.Step(plan.Event{Kind: plan.Hung, View: v})...)
			v.Origin = rapid.Bool().Draw(t, "origin")
			e := plan.Event{View: v, Missing: true, Peer: a.Peer, Why: rapid.SampledFrom([]string{"", "silent"}).Draw(t, "why")}
			e.Kind = map[plan.ActionKind]plan.EventKind{plan.Ask: plan.Answered, plan.ReadOrigin: plan.OriginEnded, plan.WaitSwarm: plan.Waited, plan.WaitFarm: plan.Waited}[a.Kind]
			if a.Kind == plan.Ask && rapid.Bool().Draw(t, "refers") {
				e.Refer = rapid.SampledFrom(everybody).Draw(t, "to")
			}
			open = append(open, j.Step(e)...)
		}
		t.Fatalf("the job ended without saying so")
	})
}
