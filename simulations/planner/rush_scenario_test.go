package planner_test

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestRush(t *testing.T) {
	for _, r := range []rushing{
		{seed: 1, farms: 20, nodes: 10, runs: 128, size: 4 * runSize, loss: 30},
	} {
		begun := time.Now()
		c := newRush(r)
		c.play()
		slices.Sort(c.took)
		total := 0
		for _, n := range c.reads {
			total += n
		}
		ideal := time.Duration(float64(r.size*r.runs) / uplinkRate * 1e9)
		p := func(q int) time.Duration { return c.took[(len(c.took)-1)*q/100] }
		var up int64
		for _, u := range c.ups {
			up = max(up, u.in.bytes)
		}
		fmt.Printf("%+v: origin %.3f, requests %d, done %d, p50 %s (%.0f %%), p99 %s, last %s; ideal %s; most over an uplink %.2f; %d events, %s of ours\n", r, float64(total)/float64(r.runs), c.requests, len(c.took), p(50), 100*float64(ideal)/float64(p(50)), p(99), p(100), ideal, float64(up)/float64(r.runs*r.size), c.steps, time.Since(begun))
	}
}
