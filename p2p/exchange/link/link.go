// Package link accounts for the bytes that are under way to one peer, and learns from
// their acknowledgements how many may be. See package exchange for why.
package link

import (
	"sync"
	"time"
)

// Class is what shares a bound of bytes under way: guests' data is not counted as bulk.
type Class uint8

// The classes.
const (
	Bulk Class = iota
	Guest

	// Classes is their number.
	Classes = int(Guest) + 1
)

// Link is the way from here to one peer: how many bytes are under way on it, and
// what that tells of its rate. Safe for concurrent use.
type Link struct {
	begun time.Time // what the window's times count from
	up    *Uplink

	// mu guards what follows; nothing is locked under it.
	mu     sync.Mutex
	window window
	flow   [Classes]flow
	// plain counts down the bodies to send uncompressed after one that gained nothing.
	plain int
}

// New returns a link of which nothing is known, one of those that share up.
func New(up *Uplink) *Link { return &Link{begun: time.Now(), up: up} }

// flow is the account of one class, in bytes.
type flow struct {
	booked  int // for objects whose turn was given and that are not sent yet
	sent    int // and not acknowledged
	asked   int // acknowledgements that are under way
	refused bool
}

// Outflow is the part of a flow that one stream carries. It is the Link's.
type Outflow struct {
	// Class is set before the first Send.
	Class  Class
	fresh  int // bytes sent since the last frame that asks for an acknowledgement
	asked  []asked
	closed bool // the stream is gone, and what it carried is forgotten
}

// asked is a frame that asks for an acknowledgement.
type asked struct {
	bytes int // it will be for
	at    time.Duration
	full  bool
}

// ackEvery is the part of the window after which an Ack is asked for: so often that the
// window never runs dry, and no more, since each costs both ends a wake-up.
const ackEvery = 8

// Book makes room for an object of that size, in bytes, if the window has it. While
// no acknowledgement is under way one object may always go: it will ask for one.
func (l *Link) Book(c Class, size int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.flow[c]
	if f.booked+f.sent >= max(l.window.limit(), 2*size) && (f.asked > 0 || f.booked > 0) {
		f.refused = true
		return false
	}
	if c == Bulk && !l.up.book(size, l.window.limit()) {
		return false
	}
	f.booked += size
	return true
}

// Forgo gives booked room back.
func (l *Link) Forgo(c Class, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flow[c].booked -= size
	if c == Bulk {
		l.up.move(-size)
	}
}

// Send turns booked room into size bytes under way on o, and says whether their
// frame must ask for an acknowledgement. Frames are written in the order of the
// calls. The bytes were ready to go at the given time: waiting behind others for
// the stream is part of the round trip.
func (l *Link) Send(o *Outflow, booked, size int, at time.Time) (ack bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.flow[o.Class]
	f.booked -= booked
	tight := o.Class == Bulk && l.up.move(-booked)
	if o.closed { // its turn came before the end: nobody will acknowledge it
		return false
	}
	f.sent += size
	o.fresh += size
	limit := l.window.limit()
	if o.fresh < limit/ackEvery && f.sent < limit && !tight {
		return false
	}
	if o.Class == Bulk {
		l.up.move(o.fresh)
	}
	full := f.refused || f.sent >= limit
	o.asked = append(o.asked, asked{o.fresh, at.Sub(l.begun), full})
	o.fresh = 0
	f.asked++
	f.refused = false
	return true
}

// Acked takes the Ack of the oldest frame on o that asked; false if it is another's.
func (l *Link) Acked(o *Outflow, bytes int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(o.asked) == 0 || o.asked[0].bytes != bytes {
		return false
	}
	a := o.asked[0]
	o.asked = append(o.asked[:0], o.asked[1:]...)
	f := &l.flow[o.Class]
	f.sent -= bytes
	f.asked--
	if o.Class == Bulk {
		l.up.acked(bytes)
	}
	l.window.acked(sample{a.bytes, a.at, time.Since(l.begun), a.full})
	return true
}

// Close forgets what a stream had under way, and what is still sent on it.
func (l *Link) Close(o *Outflow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.flow[o.Class]
	f.sent -= o.fresh
	for _, a := range o.asked {
		f.sent -= a.bytes
		if o.Class == Bulk {
			l.up.move(-a.bytes)
		}
	}
	f.asked -= len(o.asked)
	o.fresh, o.asked, o.closed = 0, nil, true
}

const (
	// compressBelow is the rate of a link, in bytes a second, under which bodies
	// are compressed for it: a core compresses several times that, so it never
	// holds the link up, and the gigabit links of a farm stay as they are.
	compressBelow = 64 << 20
	// compressWell is the rate under which they are compressed as well as a core can at several
	// times that.
	compressWell = 16 << 20
	// compressMin is the length, in bytes, under which it isn't worth the trouble.
	compressMin = 4 << 10
	// plainAfter is how many bodies go as they are after one that did not shrink
	// by an eighth: its neighbours are mostly of the same kind.
	plainAfter = 15
)

// Effort is how hard a body is to be compressed.
type Effort uint8

// The efforts.
const (
	None Effort = iota
	Some
	Much
)

// Compress returns the effort that the next body for the link is worth.
func (l *Link) Compress(size int) Effort {
	l.mu.Lock()
	defer l.mu.Unlock()
	rate, ok := l.window.measured()
	switch {
	case !ok || rate >= compressBelow || size < compressMin:
		return None
	case rate < compressWell:
		return Much // each is worth it
	case l.plain > 0:
		l.plain--
		return None
	}
	return Some
}

// Incompressible notes that a body did not shrink.
func (l *Link) Incompressible() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.plain = plainAfter
}
