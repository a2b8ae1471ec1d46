package exchange

import (
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// queueTarget is how much longer than its shortest round trip the bulk under
	// way may make a link: what a guest's fault then waits behind.
	queueTarget = 5 * time.Millisecond
	// windowMin keeps a link busy while the next chunk is read: two chunks.
	windowMin = 2 * content.ChunkSizeDefault
	// windowMax is what a 10 Gbit/s link holds at a round trip of 50 ms.
	windowMax = 64 << 20
	// baseLife is how long a shortest round trip is believed. Then the window
	// shrinks for a moment, so that the queue empties and shows it again.
	baseLife = 10 * time.Second
	// probeRounds is how many round trips that moment lasts: one empties the
	// queue, one measures.
	probeRounds = 2
)

// window says how many bytes of bulk may be under way on one link: as many as
// make its round trip queueTarget longer than its shortest. It doubles each round
// trip until that shows, and follows from there. It is pure: time comes with the
// samples, as the time since any fixed moment.
type window struct {
	size int // 0 stands for windowMin

	base   time.Duration // the shortest round trip; 0 when none is known
	baseAt time.Duration // when it was last seen
	steady bool          // doubling is over
	probe  int           // rounds left of a probe
	rate   float64       // bytes a second when the window was full, smoothed; 0 when it never was

	round struct {
		begun     time.Duration
		started   bool
		bytes     int
		shortest  time.Duration
		shortened bool // it was full at least once
	}
}

// sample is one acknowledgement: so many bytes, the last of which were sent and
// acknowledged at these times; full says that the window held back more.
type sample struct {
	bytes       int
	sent, acked time.Duration
	full        bool
}

// limit returns the bytes that may be under way.
func (w *window) limit() int {
	if w.probe > 0 {
		return windowMin
	}
	return max(w.size, windowMin)
}

// measured reports the rate of the link in bytes a second, once the window has
// been wide enough to fill it.
func (w *window) measured() (rate float64, ok bool) { return w.rate, w.steady && w.rate > 0 }

// acked takes a sample. A round is the time between sending a byte and hearing
// of it; the window changes once a round.
func (w *window) acked(s sample) {
	r := &w.round
	trip := max(s.acked-s.sent, time.Microsecond)
	if !r.started {
		r.started, r.begun, r.shortest = true, s.acked, trip
		return
	}
	r.bytes += s.bytes
	r.shortest = min(r.shortest, trip)
	r.shortened = r.shortened || s.full
	if s.sent < r.begun {
		return // sent before the round began
	}
	w.endRound(s.acked)
	r.begun, r.bytes, r.shortest, r.shortened = s.acked, 0, time.Hour, false
}

func (w *window) endRound(now time.Duration) {
	r := &w.round
	if w.base == 0 || r.shortest <= w.base+w.base/8 || w.probe == 1 {
		if w.base == 0 || r.shortest < w.base || w.probe == 1 {
			w.base = r.shortest
		}
		w.baseAt = now
	}
	if w.probe > 0 {
		w.probe--
		return
	}
	if !r.shortened {
		return // nobody wanted more: it says nothing about the link
	}
	if elapsed := now - r.begun; elapsed > 0 {
		rate := float64(r.bytes) / elapsed.Seconds()
		if w.rate == 0 {
			w.rate = rate
		}
		w.rate += (rate - w.rate) / 4
	}
	if now-w.baseAt > baseLife {
		w.probe = probeRounds
		return
	}
	if r.shortest > w.base+queueTarget {
		w.steady = true
	}
	factor := 2.0
	if w.steady {
		factor = float64(w.base+queueTarget) / float64(r.shortest)
		factor = min(2, max(0.5, factor))
	}
	w.size = min(windowMax, max(windowMin, int(float64(w.limit())*factor)))
}
