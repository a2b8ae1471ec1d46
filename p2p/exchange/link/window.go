package link

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
	// longWay is the round trip of a way to another site, which is hardly faster than a core
	// compresses.
	longWay = 10 * time.Millisecond
	// probeRounds is how many round trips that lasts: one empties the queue, one measures.
	probeRounds = 2
)

// window says how many bytes of bulk may be under way on one link: what it carries
// in its shortest round trip and queueTarget. It doubles every other round trip
// until less comes through, and follows the rate from there. It is pure: time comes with the
// samples, as the time since any fixed moment.
type window struct {
	size int // 0 stands for windowMin

	base    time.Duration // the shortest round trip; 0 when none is known
	baseAt  time.Duration // when it was last seen
	steady  bool          // doubling is over
	settled bool          // what comes through was sent under this window
	probe   int           // rounds left of a probe
	rate    float64       // bytes a second when the window was full, smoothed; 0 when it never was

	round struct {
		begun    time.Duration
		started  bool
		bytes    int
		shortest time.Duration
		full     bool // at least once
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

// measured reports the link's rate in bytes a second, once a window has filled it; of a long
// way what it has been so far.
func (w *window) measured() (rate float64, ok bool) {
	return w.rate, w.rate > 0 && (w.steady || w.base >= longWay)
}

// acked takes a sample. A round is the time between sending a byte and hearing
// of it; the window changes every other round.
func (w *window) acked(s sample) {
	r := &w.round
	trip := max(s.acked-s.sent, time.Microsecond)
	if !r.started {
		r.started, r.begun, r.shortest = true, s.acked, trip
		return
	}
	r.bytes += s.bytes
	r.shortest = min(r.shortest, trip)
	r.full = r.full || s.full
	if s.sent < r.begun {
		return // sent before the round began
	}
	w.endRound(s.acked)
	r.begun, r.bytes, r.shortest, r.full = s.acked, 0, time.Hour, false
}

// endRound adapts to the bytes that came through in a round.
func (w *window) endRound(now time.Duration) {
	r := &w.round
	if w.base == 0 || r.shortest <= w.base || w.probe == 1 {
		w.base, w.baseAt = r.shortest, now
	}
	if w.probe > 0 {
		w.probe--
		w.settled = false
		return
	}
	if !r.full || now <= r.begun {
		return // nobody wanted more: it says nothing about the link
	}
	if !w.settled { // what came through was sent under the window before
		w.settled = true
		return
	}
	w.settled = false
	rate := float64(r.bytes) / (now - r.begun).Seconds()
	if w.rate == 0 {
		w.rate = rate
	}
	w.rate += (rate - w.rate) / 4
	if now-w.baseAt > baseLife {
		w.probe = probeRounds
		return
	}
	limit := float64(w.limit())
	want := max(rate, w.rate) * (w.base + queueTarget).Seconds() // one round in which an end was busy says little
	if want < limit {
		w.steady = true
	}
	next := 2 * limit
	if w.steady { // in small steps: one round may mislead
		next = min(max(want, limit/2), limit*5/4)
	}
	w.size = int(min(windowMax, max(windowMin, next)))
}
