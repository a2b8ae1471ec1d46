package plan

import (
	"maps"
	"time"
)

const (
	// asideFirst is how long a member is passed over after a failure: as long as a
	// silent one is waited for. It doubles with each failure in a row, to asideMax.
	asideFirst = 2 * time.Second
	asideMax   = time.Minute
	// TryMax is how long somebody who is in no hurry may take to try a member again.
	TryMax = 10 * time.Second
	// breakerMax bounds the members that are remembered.
	breakerMax = 4096
)

// Breaker remembers which members failed lately. A member is passed over for a while,
// twice as long each time that it fails again. Then it is to be tried by somebody who
// is in no hurry: who is passes it over until it has answered. The zero value is ready.
// Not safe for concurrent use.
type Breaker struct {
	failed  map[Peer]failure
	stalled time.Time // the last time that a member was found to stall
}

type failure struct {
	until  time.Time
	span   time.Duration
	trying bool // it is being asked whether it is back
}

// Fail notes that p failed, or was silent.
func (b *Breaker) Fail(p Peer, now time.Time) { b.Stall(p, now, 0) }

// Stall notes that p has kept somebody waiting in vain for that long: it is passed
// over for as long, at least.
func (b *Breaker) Stall(p Peer, now time.Time, quiet time.Duration) {
	if quiet > 0 {
		b.stalled = now
	}
	span := min(max(asideFirst, quiet), asideMax)
	if f, ok := b.failed[p]; ok {
		if now.Before(f.until) && !f.trying { // requests that were under way fail together
			return
		}
		span = min(max(span, 2*f.span), asideMax)
	}
	b.Aside(p, now, span)
}

// Wary reports whether a member was found to stall lately: within the longest time
// that one is passed over.
func (b *Breaker) Wary(now time.Time) bool {
	return !b.stalled.IsZero() && now.Sub(b.stalled) < asideMax
}

// Aside has p passed over for that long, whatever it does, and reports whether it was
// already.
func (b *Breaker) Aside(p Peer, now time.Time, span time.Duration) (was bool) {
	was = b.passes(p, now, false)
	if b.failed == nil {
		b.failed = map[Peer]failure{}
	}
	if len(b.failed) >= breakerMax {
		maps.DeleteFunc(b.failed, func(_ Peer, f failure) bool { return !now.Before(f.until) })
	}
	if _, known := b.failed[p]; known || len(b.failed) < breakerMax {
		b.failed[p] = failure{now.Add(span), span, false}
	}
	return was
}

// passes reports whether a member is passed over, by who is in a hurry or not.
func (b *Breaker) passes(p Peer, now time.Time, hurry bool) bool {
	if len(b.failed) == 0 {
		return false
	}
	f, ok := b.failed[p]
	return ok && (hurry || now.Before(f.until))
}

// Due reports whether the time of a member is over: it is to be tried now, and Fail or
// Work to follow. Nobody else is told so for a while.
func (b *Breaker) Due(p Peer, now time.Time) bool {
	f, ok := b.failed[p]
	if !ok || now.Before(f.until) {
		return false
	}
	b.failed[p] = failure{now.Add(TryMax), f.span, true}
	return true
}

// Work notes that p answered. It does not shorten what p is passed over for.
func (b *Breaker) Work(p Peer, now time.Time) {
	if f, ok := b.failed[p]; ok && (f.trying || !now.Before(f.until)) {
		delete(b.failed, p)
	}
}

// Passed returns the members that are passed over, by who is in a hurry or not, and
// until when at least.
func (b *Breaker) Passed(now time.Time, hurry bool) map[Peer]time.Time {
	out := map[Peer]time.Time{}
	for p, f := range b.failed {
		if b.passes(p, now, hurry) {
			out[p] = f.until
		}
	}
	return out
}
