package planner_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/grangemesh/grange/node/fetch/plan"
)

// TestScenarios plays the files of testdata; -rewrite writes down what happens.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/scenarios", func(t *testing.T, path string) {
		m := newMesh()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			m.trace.Reset()
			m.command(t, d)
			return m.trace.String()
		})
	})
}

// command carries out one line of a scenario:
//
//	farm name=F nodes=(a,b)             new members
//	rank run=R farm=F                   who leads
//	set nodes=(a,b) FLAG…               dead, alive, liar, honest, staller, shows, blind, cold, budget, unsettled, origin, no-origin
//	hold / evict nodes=(a) runs=(r)     what a cache holds
//	view node=a members=(a,b)           what a member sees of its farm
//	refer node=a to=b                   a refers the next asker
//	announce farm=F nodes=(a) [to=(k)]  what all others, or some, find of the root
//	farms run=R of=(F,G)                which farm leads
//	origin delay=50ms | origin down | origin up
//	want nodes=(a,b) run=R [guest]      asks at once, and plays to the end; kill=(c) at=5ms
//	                                    then=(S,T) every=3s: and for those, one after the other
//	look nodes=(a,b) name=N version=V   the same for a name; kill=(c) or written=V2 at=5ms
func (m *mesh) command(t *testing.T, d *datadriven.TestData) {
	switch d.Cmd {
	case "farm":
		for _, name := range peers(t, d, "nodes") {
			m.add(arg(t, d, "name"), name)
		}
	case "rank":
		m.say("%s", plan.Rank(arg(t, d, "run"), m.farms[arg(t, d, "farm")]))
	case "farms":
		m.say("%s", plan.Rank(arg(t, d, "run"), peers(t, d, "of")))
	case "set":
		for _, p := range peers(t, d, "nodes") {
			m.nodes[p].set(t, d)
		}
	case "hold", "evict":
		for _, p := range peers(t, d, "nodes") {
			for _, run := range peers(t, d, "runs") {
				m.nodes[p].holds[m.run(string(run))] = d.Cmd == "hold"
			}
		}
	case "view":
		m.nodes[plan.Peer(arg(t, d, "node"))].view = peers(t, d, "members")
	case "refer":
		m.nodes[plan.Peer(arg(t, d, "node"))].refers = plan.Peer(arg(t, d, "to"))
	case "announce":
		for _, n := range m.nodes {
			if farm := arg(t, d, "farm"); n.farm != farm && (!d.HasArg("to") || slices.Contains(peers(t, d, "to"), n.name)) {
				n.swarm = maps.Clone(n.swarm)
				if n.swarm == nil {
					n.swarm = map[string][]plan.Peer{}
				}
				n.swarm[farm] = peers(t, d, "nodes")
			}
		}
	case "origin":
		m.setOrigin(t, d)
	case "want":
		m.wantAll(t, d)
	case "look":
		m.lookAll(t, d)
	default:
		d.Fatalf(t, "unknown command %s", d.Cmd)
	}
}

func (m *mesh) setOrigin(t *testing.T, d *datadriven.TestData) {
	for _, a := range d.CmdArgs {
		switch a.Key {
		case "down", "up":
			m.down = a.Key == "down"
		case "delay":
			delay, err := time.ParseDuration(a.Vals[0])
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			m.delay = delay
		}
	}
}

func (n *node) set(t *testing.T, d *datadriven.TestData) {
	for _, a := range d.CmdArgs {
		switch a.Key {
		case "nodes":
		case "dead", "alive":
			n.dead = a.Key == "dead"
		case "liar", "honest":
			n.liar = a.Key == "liar"
		case "staller":
			n.staller = true
		case "shows":
			n.shows = true
		case "blind":
			n.blind = true
		case "cold":
			n.cold = true
		case "budget":
			n.budget = true
		case "unsettled":
			n.settled = false
		case "origin", "no-origin":
			n.origin = a.Key == "origin"
		default:
			d.Fatalf(t, "unknown flag %s", a.Key)
		}
	}
}

func (m *mesh) wantAll(t *testing.T, d *datadriven.TestData) {
	m.now, m.reads = 0, map[string]int{}
	runs, every := []plan.Peer{plan.Peer(arg(t, d, "run"))}, time.Duration(0)
	if d.HasArg("then") {
		var err error
		if every, err = time.ParseDuration(arg(t, d, "every")); err != nil {
			d.Fatalf(t, "%v", err)
		}
		runs = append(runs, peers(t, d, "then")...)
	}
	for _, run := range runs {
		m.run(string(run))
	}
	m.meet()
	if d.HasArg("kill") {
		at, err := time.ParseDuration(arg(t, d, "at"))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		m.after(at, func() {
			for _, p := range peers(t, d, "kill") {
				m.nodes[p].die()
			}
		})
	}
	for i, run := range runs {
		m.after(time.Duration(i)*every, func() { m.wantRun(peers(t, d, "nodes"), string(run), d.HasArg("guest")) })
	}
	m.play()
	for _, farm := range slices.Sorted(maps.Keys(m.reads)) {
		fmt.Fprintf(m.trace, "reads of %s: %d\n", farm, m.reads[farm])
	}
}

func (m *mesh) wantRun(nodes []plan.Peer, run string, guest bool) {
	for _, p := range nodes {
		m.nodes[p].want(m.run(run), plan.Config{Guest: guest, Hurry: guest}, func(ok bool) {
			m.say("%s %s", p, map[bool]string{true: "has it", false: "has it not"}[ok])
		})
	}
}

func arg(t *testing.T, d *datadriven.TestData, key string) string {
	vals := peers(t, d, key)
	if len(vals) != 1 {
		d.Fatalf(t, "%s has %d values", key, len(vals))
	}
	return string(vals[0])
}

func peers(t *testing.T, d *datadriven.TestData, key string) []plan.Peer {
	for _, a := range d.CmdArgs {
		if a.Key != key {
			continue
		}
		var out []plan.Peer
		for _, v := range a.Vals {
			out = append(out, plan.Peer(strings.TrimSpace(v)))
		}
		return out
	}
	d.Fatalf(t, "%s=… is missing", key)
	return nil
}
