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
	// breakerMax bounds the members that are remembered.
	breakerMax = 4096
)

// Breaker remembers which members failed lately. A member is passed over for a
// while, then tried again: one that fails at once is passed over for longer, one
// that has had peace for as long as it was passed over begins anew. The zero
// value is ready. Not safe for concurrent use.
type Breaker struct {
	failed  map[Peer]failure
	stalled time.Time // the last time that a member was found to stall
}

type failure struct {
	until time.Time
	span  time.Duration
}

// Fail notes that p failed, or was silent.
func (b *Breaker) Fail(p Peer, now time.Time) { b.Stall(p, now, 0) }

// Stall notes that p has kept somebody waiting in vain for that long: it is passed
// over for as long, at least, and has had no peace meanwhile.
func (b *Breaker) Stall(p Peer, now time.Time, quiet time.Duration) {
	if quiet > 0 {
		b.stalled = now
	}
	span := min(max(asideFirst, quiet), asideMax)
	if f, ok := b.failed[p]; ok && now.Add(-quiet).Before(f.until.Add(f.span)) {
		if now.Before(f.until) { // requests that were under way fail together
			return
		}
		span = min(max(span, 2*f.span), asideMax)
	}
	b.note(p, now, span)
}

// Wary reports whether a member was found to stall lately: within the longest time
// that one is passed over.
func (b *Breaker) Wary(now time.Time) bool {
	return !b.stalled.IsZero() && now.Sub(b.stalled) < asideMax
}

// Aside has p passed over for that long, whatever it does.
func (b *Breaker) Aside(p Peer, now time.Time, span time.Duration) { b.note(p, now, span) }

func (b *Breaker) note(p Peer, now time.Time, span time.Duration) {
	if b.failed == nil {
		b.failed = map[Peer]failure{}
	}
	if len(b.failed) >= breakerMax {
		maps.DeleteFunc(b.failed, func(_ Peer, f failure) bool { return !now.Before(f.until) })
	}
	if _, known := b.failed[p]; known || len(b.failed) < breakerMax {
		b.failed[p] = failure{now.Add(span), span}
	}
}

// Work notes that p answered. It does not shorten what p is passed over for.
func (b *Breaker) Work(p Peer, now time.Time) {
	if f, ok := b.failed[p]; ok && !now.Before(f.until) {
		delete(b.failed, p)
	}
}

// Passed returns until when members are passed over.
func (b *Breaker) Passed(now time.Time) map[Peer]time.Time {
	out := map[Peer]time.Time{}
	for p, f := range b.failed {
		if now.Before(f.until) {
			out[p] = f.until
		}
	}
	return out
}
