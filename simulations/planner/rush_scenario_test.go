package planner_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/grangemesh/grange/simulations/soak"
)

// seed replays a rush.
var seed = flag.Uint64("planner.seed", 1, "of a rush's random numbers")

// TestRushes plays the tables of testdata/rushes: farms whose nodes all begin at once and
// have nothing, at several losses of view. -rewrite writes down what is not within its bar.
func TestRushes(t *testing.T) {
	datadriven.Walk(t, soak.Of("testdata/rushes/few", "testdata/rushes"), func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			r := rushing{seed: *seed, size: runSize}
			d.ScanArgs(t, "farms", &r.farms)
			d.ScanArgs(t, "nodes", &r.nodes)
			d.ScanArgs(t, "runs", &r.runs)
			if d.HasArg("MiB") {
				var each int
				d.ScanArgs(t, "MiB", &each)
				r.size = each << 20
			}
			for name, share := range map[string]*int{"kill": &r.kill, "liars": &r.liars, "slow": &r.slow} {
				if d.HasArg(name) {
					d.ScanArgs(t, name, share)
				}
			}
			r.follow, r.apart, r.brown = d.HasArg("follow"), d.HasArg("apart"), d.HasArg("brown")
			for _, loss := range peers(t, d, "loss") {
				if _, err := fmt.Sscan(string(loss), &r.loss); err != nil {
					d.Fatalf(t, "%v", err)
				}
				begun := time.Now()
				c := newRush(r)
				c.play()
				fmt.Fprintf(&out, "loss %2d %%: %s\n", r.loss, c.table(t, d, r))
				t.Logf("%+v: %d events in %s: %+v", r, c.steps, time.Since(begun), c.measured(r))
			}
			return out.String()
		})
	})
}

// result is what came of a rush.
type result struct {
	origin, uplink float64 // bytes, of the image's; over the busiest uplink
	p50            float64 // the rate of half the nodes, of the uplink's
	p99            float64 // the time of the slowest hundredth, of that of half the nodes
	requests       float64 // at the origin, for a run
	lies           float64 // that came to a node
}

func (c *rush) measured(r rushing) (out result) {
	slices.Sort(c.took)
	image := float64(r.size * r.runs)
	for _, n := range c.reads {
		out.origin += float64(n*r.size) / image
	}
	for _, u := range c.ups {
		out.uplink = max(out.uplink, float64(u.in.bytes)/image)
	}
	at := func(percent int) float64 { return c.took[(len(c.took)-1)*percent/100].Seconds() }
	out.p50, out.p99 = image/uplinkRate/at(50), at(99)/at(50)
	out.requests = float64(c.requests) / float64(r.runs)
	out.lies = float64(c.lies) / float64(len(c.took))
	return out
}

// table says of each measure that it is within the bar that the command gives, or what it is.
func (c *rush) table(t *testing.T, d *datadriven.TestData, r rushing) string {
	m, cells := c.measured(r), []string{"all that live are done"}
	if left := len(c.begun); left > 0 {
		cells[0] = fmt.Sprintf("%d ARE NOT DONE", left)
	}
	for _, bar := range []struct {
		name  string
		is    float64
		least bool
	}{{"origin", m.origin, false}, {"requests", m.requests, false}, {"uplink", m.uplink, false}, {"p50", m.p50, true}, {"p99", m.p99, false}, {"lies", m.lies, false}} {
		if !d.HasArg(bar.name) {
			continue
		}
		text, most := arg(t, d, bar.name), 0.0
		if _, err := fmt.Sscan(text, &most); err != nil {
			d.Fatalf(t, "%v", err)
		}
		sign := map[bool]string{true: ">=", false: "<="}[bar.least]
		if bar.is > most && !bar.least || bar.is < most && bar.least {
			sign, text = "IS", fmt.Sprintf("%.2f", bar.is)
		}
		cells = append(cells, fmt.Sprintf("%s %s %s", bar.name, sign, text))
	}
	return strings.Join(cells, ", ")
}

// TestASeedReplaysARush event by event.
func TestASeedReplaysARush(t *testing.T) {
	play := func(seed uint64) string {
		c := newRush(rushing{seed: seed, farms: 6, nodes: 4, runs: 16, size: runSize, loss: 30})
		c.trace = new(strings.Builder)
		c.play()
		return c.trace.String()
	}
	first, again, other := play(*seed), play(*seed), play(*seed+1)
	if first != again || first == other {
		t.Errorf("the same seed plays the same: %t, another one something else: %t", first == again, first != other)
	}
}
