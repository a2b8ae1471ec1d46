package link

import (
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// roomMin and roomMax bound what may be under way on all links together, in bytes: a few
	// objects, and many links that are full; roomStart is a start between them.
	roomMin   = 4 * content.ChunkSizeDefault
	roomStart = 8 * content.ChunkSizeDefault
	roomMax   = 256 << 20
	// roomRound is how long one amount of room is measured: several round trips anywhere.
	roomRound = 250 * time.Millisecond
	// roomRest is how long room that was found good is kept, before more or less is tried.
	roomRest = 10 * time.Second
	// roomGain is how many times as fast twice the room must be to be kept, and roomLoss how
	// much slower half of it may be: a measure is not that exact.
	roomGain, roomLoss = 1.1, 0.95
)

// Uplink bounds the bulk that is under way on all links together. Each has two objects at
// least, which for many askers is a long queue on a slow line; but many may be slow each, so
// that much has to be under way. So it gives as much room as adds to what comes through, and
// not less than one link has to itself. Safe for concurrent use.
type Uplink struct {
	begun time.Time // what the climb's times count from

	mu      sync.Mutex // guards what follows; nothing is locked under it
	under   int        // bytes booked, or sent and asked about
	refused bool       // somebody was, in this round
	climb   climb
}

// NewUplink returns one of which nothing is known.
func NewUplink() *Uplink { return &Uplink{begun: time.Now()} }

// Rate returns the most that came through lately, in bytes a second; 0 when nothing is known.
func (u *Uplink) Rate() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return int64(u.climb.peak)
}

// book makes room for an object on a link that may have so many bytes under way by itself.
func (u *Uplink) book(size, alone int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.under > 0 && u.under >= max(u.climb.limit(), alone) {
		u.refused = true
		return false
	}
	u.under += size
	return true
}

// move counts bytes that are under way now, or no more; tight reports whether somebody waits
// for room, so that it is to be known soon what has come through.
func (u *Uplink) move(bytes int) (tight bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.under += bytes
	return u.refused
}

// acked counts bytes that have come through.
func (u *Uplink) acked(bytes int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.under -= bytes
	if u.climb.acked(bytes, u.refused, time.Since(u.begun)) {
		u.refused = false
	}
}

// climb finds how much room is of use: it tries twice of it, and half of it, in turns. It is
// pure: time comes with the calls, as the time since any fixed moment.
type climb struct {
	room    int // 0 stands for roomStart
	step    int // 1 while more is tried, -1 while less is
	up      bool
	rest    time.Duration // when the next is tried
	rate    float64       // bytes a second that the room before had
	settled bool          // what comes through was sent with this room
	peak    float64

	begun time.Duration // of the round
	bytes int
}

func (c *climb) limit() int {
	if c.room == 0 {
		return roomStart
	}
	return c.room
}

// acked counts what has come through; full says that there was no room for more. ended
// reports the end of a round.
func (c *climb) acked(bytes int, full bool, now time.Duration) (ended bool) {
	c.bytes += bytes
	took := now - c.begun
	if took < roomRound {
		return false
	}
	rate := float64(c.bytes) / took.Seconds()
	c.begun, c.bytes = now, 0
	switch {
	case took > 2*roomRound: // nothing came for a while
	case !full:
		c.peak = max(rate, c.peak*roomLoss)
		c.step = 0
	case !c.settled:
		c.settled = true
	default:
		c.peak = max(rate, c.peak*roomLoss)
		c.judge(rate, now)
	}
	return true
}

// judge goes on, or back, by what came through with the room of now.
func (c *climb) judge(rate float64, now time.Duration) {
	switch {
	case c.step > 0 && rate < roomGain*c.rate, c.step < 0 && rate < roomLoss*c.rate: // in vain
		c.resize(-c.step)
		c.step, c.rest = 0, now+roomRest
		return
	case c.step == 0 && now < c.rest:
		return
	case c.step == 0:
		c.up = !c.up
		c.step = map[bool]int{true: 1, false: -1}[c.up]
		c.rate = rate
	case c.step > 0:
		c.rate = rate
	}
	if !c.resize(c.step) {
		c.step, c.rest = 0, now+roomRest
	}
}

// resize doubles the room, or halves it; false at the ends.
func (c *climb) resize(step int) bool {
	before, next := c.limit(), c.limit()*2
	if step < 0 {
		next = before / 2
	}
	c.room, c.settled = min(roomMax, max(roomMin, next)), false
	return c.room != before
}
