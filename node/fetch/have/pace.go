package have

import (
	"sync"
	"time"
)

// paceShare is how much of the time scans may take, of all roots together: one part
// in so many.
const paceShare = 50

// Pace is when the cache may be looked at again. Safe for concurrent use.
type Pace struct {
	mu   sync.Mutex // guards next
	next time.Time
}

// Due reports whether it may.
func (p *Pace) Due(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !now.Before(p.next)
}

// Spent has the next look wait for its share of what this one took.
func (p *Pace) Spent(now time.Time, cost time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(paceShare * cost)
}
