package exchange

import (
	"sync"
	"time"
)

// class is what shares one bound of bytes under way: guests' data does not count
// against the bulk.
type class uint8

const (
	classBulk class = iota
	classGuest
	classes
)

// link is the way from here to one peer: how many bytes are under way on it, and
// what that tells of its rate.
type link struct {
	begun time.Time // what the window's times count from

	// mu guards what follows; nothing is locked under it.
	mu     sync.Mutex
	window window
	flow   [classes]flow
	// plain counts down the bodies to send uncompressed after one that gained
	// nothing.
	plain int
}

// flow is the account of one class, in bytes.
type flow struct {
	booked  int // for objects whose turn was given and that are not sent yet
	sent    int // and not acknowledged
	asked   int // acknowledgements that are under way
	refused bool
}

// outflow is the part of a flow that one stream carries. The link's mu guards it.
type outflow struct {
	class  class
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

// ackEvery is the part of the window after which an acknowledgement is asked for:
// often enough that the window never runs dry waiting, and no more often, since
// each costs a packet and a wake-up at both ends.
const ackEvery = 8

// book makes room for an object of the ticket's size, if the window has it. While
// no acknowledgement is under way one object may always go: it will ask for one.
func (l *link) book(t *ticket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.flow[t.class]
	if f.booked+f.sent >= max(l.window.limit(), 2*t.size) && (f.asked > 0 || f.booked > 0) {
		f.refused = true
		return false
	}
	f.booked += t.size
	return true
}

// forgo gives booked room back.
func (l *link) forgo(t *ticket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flow[t.class].booked -= t.size
}

// send turns booked room into size bytes under way on o, and says whether their
// frame must ask for an acknowledgement. Frames are written in the order of the
// calls. The bytes were ready to go at the given time: waiting behind others for
// the stream is part of the round trip.
func (l *link) send(o *outflow, booked, size int, at time.Time) (ack bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.flow[o.class]
	f.booked -= booked
	if o.closed { // its turn came before the end: nobody will acknowledge it
		return false
	}
	f.sent += size
	o.fresh += size
	limit := l.window.limit()
	if o.fresh < limit/ackEvery && f.sent < limit {
		return false
	}
	full := f.refused || f.sent >= limit
	o.asked = append(o.asked, asked{o.fresh, at.Sub(l.begun), full})
	o.fresh = 0
	f.asked++
	f.refused = false
	return true
}

// acked takes the acknowledgement of the oldest frame on o that asked for one,
// and reports whether there was one for so many bytes.
func (l *link) acked(o *outflow, bytes int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(o.asked) == 0 || o.asked[0].bytes != bytes {
		return false
	}
	a := o.asked[0]
	o.asked = append(o.asked[:0], o.asked[1:]...)
	f := &l.flow[o.class]
	f.sent -= bytes
	f.asked--
	l.window.acked(sample{a.bytes, a.at, time.Since(l.begun), a.full})
	return true
}

// close forgets what a stream had under way, and what is still sent on it.
func (l *link) close(o *outflow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.flow[o.class]
	f.sent -= o.fresh
	for _, a := range o.asked {
		f.sent -= a.bytes
	}
	f.asked -= len(o.asked)
	o.fresh, o.asked, o.closed = 0, nil, true
}
