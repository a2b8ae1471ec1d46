package cache

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// tickInterval is how often the clock and the disk's free space are looked at.
	tickInterval = 5 * time.Second
	// forgetInterval is how often checks that are too old are taken back; it must
	// be well below the days after which the number of a day comes again.
	forgetInterval = 6 * time.Hour
	// scrubRateDefault checks a TiB in some six days, at a thousandth of a core.
	scrubRateDefault = 2 << 20
)

func (c *Cache) maintain(ctx context.Context) {
	tick, forget := time.NewTicker(tickInterval), time.NewTicker(forgetInterval)
	defer tick.Stop()
	defer forget.Stop()
	var scrubbing sync.WaitGroup
	scrubbing.Go(func() { c.scrub(ctx) })
	defer scrubbing.Wait()
	for {
		select {
		case <-tick.C:
			c.tick()
			c.giveBack(ctx)
		case <-forget.C:
			c.forgetChecks()
		case <-ctx.Done():
			return
		}
	}
}

// giveBack returns slabs while the cache has more than it may.
func (c *Cache) giveBack(ctx context.Context) {
	for more := true; more && ctx.Err() == nil; {
		c.mu.Lock()
		c.cramped = false
		more = !c.closed.Load() && c.overLimit() && c.emptyAny(classes)
		c.mu.Unlock()
	}
}

// forgetChecks takes back what says that an object was checked on another day.
func (c *Cache) forgetChecks() {
	t := c.table.Load()
	for i := range t.words {
		if w := t.word(i); w.day() != 0 && w.day() != c.day(w.tag()) {
			t.swap(i, w, w.withDay(0))
		}
	}
}

// scrub reads every object in turn and drops what rotted, before a guest waits for it.
func (c *Cache) scrub(ctx context.Context) {
	if c.cfg.ScrubRate < 0 {
		return
	}
	limit := rate.NewLimiter(rate.Limit(c.cfg.ScrubRate), slotMax)
	buf := make([]byte, slotMax)
	for number := 0; ; number++ {
		ids, ok := c.objectsOf(number)
		if !ok {
			number = -1
			if limit.WaitN(ctx, slotMax) != nil { // an empty cache is not looked through without rest
				return
			}
		}
		for _, id := range ids {
			s, ok := c.look(c.secret.key(id))
			if !ok {
				continue
			}
			if limit.WaitN(ctx, s.class.size()) != nil {
				return
			}
			if v, _, err := c.verify(id, s, buf); err == nil { // which does not count as use
				c.metrics.scrubbed.Add(float64(len(v.Bytes())))
			}
		}
	}
}

// objectsOf returns what a slab has; false behind the last slab.
func (c *Cache) objectsOf(number int) (ids []content.CID, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() || number >= len(c.slabs.all) {
		return nil, false
	}
	if b := &c.slabs.all[number]; b.used {
		c.eachName(number, b.class.slots(), func(at place, n name) {
			if b.has(at.slot()) {
				ids = append(ids, n.id)
			}
		})
	}
	return ids, true
}
