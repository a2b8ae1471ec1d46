// Package hedge is what reads of the origin beside members that are slow may cost.
package hedge

import "time"

const (
	// hedgeShare: a hundredth of the bytes of the last minute may be read from the
	// origin beside a member that is slow.
	hedgeShare = 100
	// budgetSlots of a second each make the minute.
	budgetSlots = 60
)

// Budget is what hedging may cost: a share of the bytes of the last minute. The
// zero value is an idle minute. Not safe for concurrent use.
type Budget struct {
	slots  [budgetSlots]struct{ bytes, spent int64 }
	newest int64 // second of the newest slot
}

// Count notes bytes that came from anywhere.
func (b *Budget) Count(now time.Time, n int64) { b.slot(now).bytes += n }

// Spend notes n bytes of a hedge.
func (b *Budget) Spend(now time.Time, n int64) { b.slot(now).spent += n }

// Has reports whether there is room for a hedge of n bytes.
func (b *Budget) Has(now time.Time, n int64) bool {
	b.slot(now)
	var bytes, spent int64
	for _, s := range b.slots {
		bytes += s.bytes
		spent += s.spent
	}
	return spent+n <= bytes/hedgeShare
}

// slot returns the one of now, and clears those that a minute has passed over. A
// clock that goes back counts into the newest.
func (b *Budget) slot(now time.Time) *struct{ bytes, spent int64 } {
	second := now.Unix()
	for range min(second-b.newest, budgetSlots) {
		b.newest++
		b.slots[b.newest%budgetSlots] = struct{ bytes, spent int64 }{}
	}
	b.newest = max(b.newest, second)
	return &b.slots[b.newest%budgetSlots]
}
