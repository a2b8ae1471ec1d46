package budget

import (
	"math"
	"time"
)

const (
	// paceAfter is what is left of the requests a second that a store has refused, and
	// paceGain how fast they rise again, in requests a second by the cube of seconds: both as
	// in the SDK's own adaptive retries, and RFC 9438 for lines.
	paceAfter = 0.7
	paceGain  = 0.4
	// paceMin is at how many requests a second no store means this node.
	paceMin = 1
)

// pace is how many requests a second a store is sent: as many as are allowed, until it asks for fewer. Then
// it is less at once, soon nearly what was too much, there for a while, and by and by more. It is pure.
type pace struct {
	allowed float64
	tooMuch float64   // what was refused last,
	refused time.Time // and when, zero for never

	sent float64 // requests, each of which counts for less as time goes by: about those of a second
	last time.Time
}

// at returns how many requests a second are sent now.
func (p *pace) at(now time.Time) float64 {
	if p.refused.IsZero() {
		return p.allowed
	}
	back := math.Cbrt(p.tooMuch * (1 - paceAfter) / paceGain) // seconds until it is tooMuch again
	return min(p.allowed, p.tooMuch+paceGain*math.Pow(now.Sub(p.refused).Seconds()-back, 3))
}

// lately returns how many requests were sent within about a second.
func (p *pace) lately(now time.Time) float64 {
	return p.sent * math.Exp(-now.Sub(p.last).Seconds())
}

// send counts a request.
func (p *pace) send(now time.Time) { p.sent, p.last = p.lately(now)+1, now }

// slowDown learns that a request was refused. One that was sent before the pace was last
// lowered says nothing of what it is since.
func (p *pace) slowDown(sent, now time.Time) {
	if p.refused.IsZero() || sent.After(p.refused) {
		p.tooMuch = max(paceMin, min(p.at(now), p.lately(now)))
		p.refused = now
	}
}
