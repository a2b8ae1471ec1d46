package link

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// line is what askers and their line let through: each asker has one object under way, of
// room for so many, and takes a while for it.
type line struct {
	rate   float64 // of the line, in bytes a second
	askers int
	each   float64 // of an asker
}

func (l line) through(room int) float64 {
	return min(l.rate, l.each*float64(min(l.askers, room/content.ChunkSizeDefault)))
}

// run has so much time pass.
func (l line) run(c *climb, now *time.Duration, d time.Duration) {
	const tick = 20 * time.Millisecond
	for end := *now + d; *now < end; *now += tick {
		full := l.askers > c.limit()/content.ChunkSizeDefault
		c.acked(int(l.through(c.limit())*tick.Seconds()), full, *now)
	}
}

// TestUplinkGivesRoomThatIsOfUse: whatever the line and the askers are, and were, nearly all
// comes through that can, and what is under way is not many times what that takes.
func TestUplinkGivesRoomThatIsOfUse(t *testing.T) {
	draw := func(t *rapid.T) line {
		return line{rapid.Float64Range(1e6, 1e9).Draw(t, "line"), rapid.IntRange(1, 500).Draw(t, "askers"), rapid.Float64Range(1e5, 1e9).Draw(t, "each")}
	}
	rapid.Check(t, func(t *rapid.T) {
		var c climb
		var now time.Duration
		for range 2 {
			l := draw(t)
			l.run(&c, &now, 4*time.Minute)
			need := 1
			for l.through(need*content.ChunkSizeDefault) < l.through(roomMax) {
				need++
			}
			room := c.limit() / content.ChunkSizeDefault
			if got := l.through(c.limit()); got < 0.8*l.through(roomMax) {
				t.Fatalf("%.0f of %.0f bytes/s come through with room for %d; %d are enough", got, l.through(roomMax), room, need)
			}
			if l.askers > room && room > 4*need && room > 2*roomMin/content.ChunkSizeDefault {
				t.Fatalf("there is room for %d, and %d are enough", room, need)
			}
		}
	})
}

// TestUplinkHoldsManyLinksBack: beside a crowd the room counts, not what each link has.
func TestUplinkHoldsManyLinksBack(t *testing.T) {
	const links, size = 50, content.ChunkSizeDefault
	up := NewUplink()
	var all []*Link
	booked := 0
	for range links {
		l := New(up)
		all = append(all, l)
		for l.Book(Bulk, size) {
			booked += size
		}
		if !l.Book(Guest, size) {
			t.Error("a guest is held back by bulk")
		}
	}
	if booked != roomStart {
		t.Errorf("%d bytes are under way on %d links, there is room for %d", booked, links, roomStart)
	}
	all[0].Forgo(Bulk, size)
	if !all[links-1].Book(Bulk, size) {
		t.Error("room that was given back is not given")
	}
}
