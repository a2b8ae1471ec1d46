package link

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// wirePath is a link in a test: a queue in front of a line of some rate, and a
// delay. Time is simulated.
type wirePath struct {
	rate  float64 // bytes a second
	delay time.Duration
	now   time.Duration
	free  time.Duration // when the line has sent all it was given

	under  int // bytes
	frames []sample
	most   time.Duration // longest time that a frame waited for the line, since reset
	moved  int
}

// step sends chunks while the window has room, then lets the oldest arrive.
func (p *wirePath) step(w *window) {
	const size = content.ChunkSizeDefault
	for p.under < w.limit() {
		p.free = max(p.free, p.now)
		p.most = max(p.most, p.free-p.now)
		p.free += time.Duration(size / p.rate * float64(time.Second))
		p.under += size
		p.frames = append(p.frames, sample{size, p.now, p.free + p.delay, true})
	}
	s := p.frames[0]
	p.frames = p.frames[1:]
	p.now = s.acked
	p.under -= s.bytes
	p.moved += s.bytes
	w.acked(s)
}

// run steps for a while and returns the rate that came through.
func (p *wirePath) run(w *window, d time.Duration) (rate float64) {
	p.most, p.moved = 0, 0
	begun := p.now
	for p.now < begun+d {
		p.step(w)
	}
	return float64(p.moved) / (p.now - begun).Seconds()
}

func drawPath(t *rapid.T) *wirePath {
	return &wirePath{
		rate:  rapid.Float64Range(4<<20, 1<<30).Draw(t, "rate"),
		delay: time.Duration(rapid.Int64Range(int64(50*time.Microsecond), int64(100*time.Millisecond)).Draw(t, "delay")),
	}
}

// checkPath holds that the link is used well and that what comes next waits
// little: about queueTarget, and the few chunks that are the least window; after a
// pause what the way holds may come at once.
func checkPath(t *rapid.T, p *wirePath, w *window, rate float64) {
	chunk := time.Duration(content.ChunkSizeDefault / p.rate * float64(time.Second))
	if bound := p.delay + 2*max(queueTarget, chunk) + 4*chunk; p.most > bound {
		t.Errorf("bulk waited up to %v for a line of %.0f MiB/s, %v away; want at most %v", p.most, p.rate/(1<<20), p.delay, bound)
	}
	if rate < 0.85*p.rate && w.limit() < windowMax {
		t.Errorf("%.1f of %.1f MiB/s came through, %v away", rate/(1<<20), p.rate/(1<<20), p.delay)
	}
	if got, ok := w.measured(); w.limit() < windowMax && (!ok || got < 0.7*p.rate || got > 1.3*p.rate) {
		t.Errorf("measured %.1f MiB/s (%v), it is %.1f", got/(1<<20), ok, p.rate/(1<<20))
	}
}

func TestWindowFillsTheLinkAndNoMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, w := drawPath(t), new(window)
		p.run(w, 5*time.Second)
		checkPath(t, p, w, p.run(w, 3*time.Second))
	})
}

func TestWindowFollowsTheLink(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, w := drawPath(t), new(window)
		p.run(w, 3*time.Second)
		p.rate *= rapid.Float64Range(0.25, 4).Draw(t, "times the rate")
		p.delay = drawPath(t).delay
		p.run(w, 3*baseLife) // a longer way is believed after the old one's time
		checkPath(t, p, w, p.run(w, 3*time.Second))
	})
}

func TestWindowStaysWithinItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		now := time.Duration(0)
		for range rapid.IntRange(0, 300).Draw(t, "samples") {
			now += time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "step"))
			trip := time.Duration(rapid.Int64Range(-1000, int64(3*time.Second)).Draw(t, "trip"))
			w.acked(sample{rapid.IntRange(1, 8<<20).Draw(t, "bytes"), now - trip, now, rapid.Bool().Draw(t, "full")})
			if l := w.limit(); l < windowMin || l > windowMax {
				t.Fatalf("window of %d", l)
			}
		}
	})
}

func TestWindowDoesNotGrowUnused(t *testing.T) {
	var w window
	for i := range 100 {
		at := time.Duration(i) * time.Millisecond
		w.acked(sample{1000, at, at + 100*time.Microsecond, false})
	}
	if w.limit() != windowMin {
		t.Errorf("grew to %d on a link that was never full", w.limit())
	}
	if _, ok := w.measured(); ok {
		t.Error("an idle link was measured")
	}
}

func TestLinkNeverLocksUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := New(NewUplink())
		var o Outflow
		const size = content.ChunkSizeDefault
		var asked []int
		fresh, booked := 0, 0
		t.Repeat(map[string]func(*rapid.T){
			"book": func(t *rapid.T) {
				if l.Book(Bulk, size) {
					booked++
				} else if len(asked) == 0 && booked == 0 {
					t.Fatal("nothing is under way that would open the window, and it is closed")
				}
			},
			"send": func(t *rapid.T) {
				if booked == 0 {
					return
				}
				booked--
				n := rapid.IntRange(1, 1<<20).Draw(t, "size")
				fresh += n
				if l.Send(&o, size, n, time.Now()) {
					asked, fresh = append(asked, fresh), 0
				}
			},
			"forgo": func(t *rapid.T) {
				if booked == 0 {
					return
				}
				booked--
				l.Forgo(Bulk, size)
			},
			"ack": func(t *rapid.T) {
				if len(asked) == 0 {
					if l.Acked(&o, 1) {
						t.Fatal("an acknowledgement that nobody asked for was taken")
					}
					return
				}
				if l.Acked(&o, asked[0]+1) || !l.Acked(&o, asked[0]) {
					t.Fatal("want the acknowledgement of exactly what was asked about")
				}
				asked = asked[1:]
			},
			"shrink": func(t *rapid.T) { l.window.size = rapid.IntRange(windowMin, windowMax).Draw(t, "size") },
		})
		l.Close(&o)
		for range booked { // turns that were given before the end
			if l.Send(&o, size, size, time.Now()) {
				t.Fatal("a closed stream is asked for an acknowledgement")
			}
		}
		if l.flow != [Classes]flow{} && (l.flow[0].booked != 0 || l.flow[0].sent != 0 || l.flow[0].asked != 0) {
			t.Fatalf("a closed stream leaves %+v", l.flow)
		}
		if l.up.under != 0 {
			t.Fatalf("a closed stream leaves %d bytes under way", l.up.under)
		}
	})
}

func TestBodiesAreCompressedForSlowLinks(t *testing.T) {
	l := New(NewUplink())
	const size = content.ChunkSizeDefault
	if l.Compress(size) != None {
		t.Error("a link whose rate is not known gets compressed bodies")
	}
	l.window.steady, l.window.rate = true, 1<<20
	if l.Compress(size) != Much || l.Compress(compressMin-1) != None {
		t.Error("want chunks compressed for a slow link, small bodies not")
	}
	l.Incompressible()
	if l.Compress(size) != Much {
		t.Error("on a slow link the neighbours of a body that did not shrink are not tried")
	}
	l.window.rate = 1 << 25
	for range plainAfter {
		if l.Compress(size) != None {
			t.Fatal("the neighbours of a body that did not shrink are tried")
		}
	}
	if l.Compress(size) != Some {
		t.Error("want less effort for a link that is not that slow")
	}
	if l.window.rate = 1 << 30; l.Compress(size) != None {
		t.Error("a fast link gets compressed bodies")
	}
}

// TestWindowForgivesARound in which an end was busy, and not a link that got slower.
func TestWindowForgivesARound(t *testing.T) {
	const rate = 12e6
	w := window{base: 30 * time.Millisecond, steady: true, rate: rate}
	w.size = int(rate * (w.base + queueTarget).Seconds())
	before, now := w.size, time.Second
	half := func() {
		now += 60 * time.Millisecond
		w.settled = true
		w.round.begun, w.round.bytes, w.round.shortest, w.round.full = now-60*time.Millisecond, int(rate*0.06/2), 60*time.Millisecond, true
		w.endRound(now)
	}
	if half(); w.size < before*4/5 {
		t.Errorf("one round took the window from %d to %d", before, w.size)
	}
	for range 12 {
		half()
	}
	if w.size > before*2/3 {
		t.Errorf("at half the rate the window is %d still, of %d", w.size, before)
	}
}
