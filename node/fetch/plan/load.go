package plan

import (
	"maps"
	"time"
)

const (
	// loadFor is how long what was measured of a member counts: then it is taken for one as
	// any other, so that one that was slow is tried again.
	loadFor = 30 * time.Second
	// loadsMax bounds the members that are measured.
	loadsMax = 4096
	// smallAsk is how many bytes, a chunk or two, say how long a member takes to answer;
	// more of them say how fast it sends.
	smallAsk = 256 << 10
	// loadSmooth is how many measurements the smoothed ones are over, about.
	loadSmooth = 4
	// assumedRate, in bytes a second, and assumedLatency are those of a member that nobody
	// measured, until another was.
	assumedRate    = 100 << 20
	assumedLatency = time.Millisecond
	// lateShare is how many times as long as another a member has to take to be slow:
	// more than chance, and what the load of a moment makes. lateMin is how long one that
	// is asked is given before it may be found so: longer than a pause of its process.
	lateShare = 4
	lateMin   = 100 * time.Millisecond
	// lateFar is that for a prefetch from elsewhere: what comes twice crosses an uplink twice.
	lateFar = time.Second
	// insteadShare is that for another one to be asked first: one that sends to this node
	// already has as much to do again.
	insteadShare = 1.5
)

// Load is what a member's answers have shown of how soon it answers and how fast it sends
// to this node, whatever the reason.
type load struct {
	latency time.Duration // smoothed; 0 for none measured
	rate    float64       // bytes a second, smoothed; 0 for none measured
	at      time.Time     // of the latest measurement
	spare   float64       // bytes a second that it says it has left for this node; 0 for nothing said

	// What is under way: asks, the bytes that are to come, and what has come since when.
	// One that may have to bring something in first says nothing of the member.
	asks, unsure int
	under        int64
	since        time.Time
	came         int64
}

// loads are the members that this node asks, and what all of them are like. Not safe for
// concurrent use.
type loads struct {
	of     map[Peer]*load
	common load
}

func (ls *loads) get(p Peer, now time.Time) *load {
	l := ls.of[p]
	if l != nil {
		return l
	}
	if ls.of == nil {
		ls.of = map[Peer]*load{}
	}
	if len(ls.of) >= loadsMax {
		maps.DeleteFunc(ls.of, func(_ Peer, l *load) bool { return l.asks == 0 && !l.fresh(now) })
	}
	l = new(load)
	if len(ls.of) < loadsMax {
		ls.of[p] = l
	}
	return l
}

// began notes that a member is asked for so many bytes.
func (ls *loads) began(s *source) {
	l := ls.get(s.act.Peer, s.asked)
	if l.asks == 0 {
		l.since, l.came = s.asked, 0
	}
	l.asks++
	l.under += s.left
	if !s.sure {
		l.unsure++
	}
	s.load = l
}

// brought notes that so much of it has come.
func (s *source) brought(n int64) {
	n = min(n, s.left)
	s.left -= n
	s.load.under -= n
	s.load.came += n
}

// ending is how an ask ended: all has come, or another was sooner or its own time over,
// which says only that the member is no faster; or neither.
type ending uint8

const (
	whole ending = iota
	overtaken
	vain
)

// ended notes that an ask is under way no more.
func (ls *loads) ended(s *source, how ending, now time.Time) {
	l := s.load
	if how == whole {
		s.brought(s.left)
	}
	took := max(now.Sub(l.since), time.Microsecond)
	rate := float64(max(l.came, smallAsk/2)) / took.Seconds()
	switch all := s.left == 0 && l.came > 0; {
	case l.unsure > 0:
	case all && l.came > smallAsk:
		l.measured(0, rate, now)
		ls.common.measured(0, rate, now)
	case all:
		l.measured(now.Sub(s.asked), 0, now)
		ls.common.measured(now.Sub(s.asked), 0, now)
	case how == overtaken && (l.rate == 0 || rate < l.rate):
		l.measured(0, rate, now)
	}
	l.asks--
	l.under -= s.left
	if !s.sure {
		l.unsure--
	}
	l.since, l.came = now, 0
}

// measured takes a latency, or a rate.
func (l *load) measured(latency time.Duration, rate float64, now time.Time) {
	if !l.fresh(now) {
		l.latency, l.rate = 0, 0
	}
	l.at = now
	switch {
	case l.latency == 0 && latency > 0:
		l.latency = latency
	case latency > 0:
		l.latency += (latency - l.latency) / loadSmooth
	case l.rate > lateShare*rate, l.rate == 0: // it has become slow
		l.rate = rate
	default:
		l.rate += (rate - l.rate) / loadSmooth
	}
}

func (l *load) fresh(now time.Time) bool { return !l.at.IsZero() && now.Sub(l.at) < loadFor }

// wait is how long a member is expected to take for so many bytes more.
func (ls *loads) wait(p Peer, bytes int64, now time.Time) time.Duration {
	latency, rate := assumedLatency, float64(assumedRate)
	if ls.common.latency > 0 {
		latency = ls.common.latency
	}
	if ls.common.rate > 0 {
		rate = ls.common.rate
	}
	l := ls.of[p]
	if l == nil {
		return latency + span(bytes, rate)
	}
	fresh := l.fresh(now)
	if fresh && l.latency > 0 {
		latency = l.latency
	}
	if fresh && l.spare > 0 {
		rate = l.spare
	}
	if fresh && l.rate > 0 && (l.spare == 0 || l.rate < l.spare) { // it knows best what it has left
		rate = l.rate
	}
	if took := now.Sub(l.since); l.asks > l.unsure && l.unsure == 0 && took > 0 {
		rate = min(rate, float64(l.came+smallAsk)/took.Seconds())
	}
	return latency + span(l.under+bytes, rate)
}

func span(bytes int64, rate float64) time.Duration {
	return time.Duration(float64(bytes) / rate * float64(time.Second))
}

// slower reports whether that is more than so many times what another member, which was
// measured, takes for so many bytes.
func (ls *loads) slower(wait time.Duration, share float64, other Peer, bytes int64, now time.Time) bool {
	l := ls.of[other]
	return l != nil && l.fresh(now) && float64(wait) > share*float64(ls.wait(other, bytes, now))
}

// slow reports whether a member is expected to take far longer than most.
func (ls *loads) slow(p Peer, bytes int64, now time.Time) bool {
	return ls.of[p] != nil && ls.wait(p, bytes, now) > lateShare*ls.wait("", bytes, now)
}
