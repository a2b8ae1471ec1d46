package boots

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// line is a simulated way: bytes come in order, at a rate, after a delay.
type line struct {
	rate  float64
	delay time.Duration
}

// bring brings parts over it as Bring does, and returns when each has come.
func (l line) bring(parts []int) (came []time.Duration, most int) {
	begun := time.Unix(0, 0)
	w, now, free, under := newWindow(), begun, begun, 0
	type way struct {
		size int
		at   time.Time
	}
	var ways []way
	for len(parts) > 0 || len(ways) > 0 {
		if len(parts) > 0 && (under == 0 || under+parts[0] <= w.size) {
			if free.Before(now.Add(l.delay)) {
				free = now.Add(l.delay)
			}
			free = free.Add(time.Duration(float64(parts[0]) / l.rate * float64(time.Second)))
			ways, under = append(ways, way{parts[0], free}), under+parts[0]
			most, parts = max(most, under), parts[1:]
			continue
		}
		now, under = ways[0].at, under-ways[0].size
		w.landed(ways[0].size, now)
		came, ways = append(came, now.Sub(begun)), ways[1:]
	}
	return came, most
}

// TestWindowFitsTheLine: a fast line that is far away gets a wide window, a slow one stays narrow, and none takes much longer
// than with all that may be.
func TestWindowFitsTheLine(t *testing.T) {
	const mbit = 1e6 / 8
	list := make([]int, 48)
	for i := range list {
		list[i] = 1 << 20
	}
	if _, most := (line{1000 * mbit, 60 * time.Millisecond}).bring(list); most != windowMost {
		t.Errorf("1 Gbit/s at 60 ms: %d bytes on their way", most)
	}
	if _, most := (line{100 * mbit, 60 * time.Millisecond}).bring(list); most > windowFirst {
		t.Errorf("100 Mbit/s at 60 ms: %d bytes on their way", most)
	}
	rapid.Check(t, func(r *rapid.T) {
		l := line{rapid.Float64Range(10, 10_000).Draw(r, "Mbit/s") * mbit, time.Duration(rapid.Int64Range(0, 200).Draw(r, "ms")) * time.Millisecond}
		parts := rapid.SliceOfN(rapid.IntRange(1, 1<<20), 1, 64).Draw(r, "parts")
		came, most := l.bring(parts)
		total := 0
		for _, n := range parts {
			total += n
		}
		if most > windowMost {
			r.Fatalf("%d bytes on their way", most)
		}
		wire := time.Duration(float64(total) / l.rate * float64(time.Second))
		rounds := time.Duration(total/windowLeast + 2)
		if last := came[len(came)-1]; last > wire+rounds*l.delay+time.Millisecond {
			r.Fatalf("%d bytes took %v, of which the line needs %v", total, last, wire)
		}
	})
}
