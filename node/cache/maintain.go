package cache

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// spaceInterval is how often the free space of the disk is looked at.
	spaceInterval = 5 * time.Second
	// scrubRateDefault checks a TiB in some six days, at a thousandth of a core.
	scrubRateDefault = 2 << 20
	// slabsPerLook bounds how much space is given back at once: evicting is work
	// under the lock.
	slabsPerLook = 16
)

// maintain runs until ctx ends.
func (c *Cache) maintain(ctx context.Context) {
	space := time.NewTicker(spaceInterval)
	defer space.Stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.scrub(ctx)
	}()
	for {
		select {
		case <-space.C:
			c.giveBack()
		case <-ctx.Done():
			<-done
			return
		}
	}
}

// giveBack returns slabs while the cache has more than it may.
func (c *Cache) giveBack() {
	for range slabsPerLook {
		c.mu.Lock()
		more := c.overLimit() && c.slabs.live > 1 && c.evictSlab()
		c.mu.Unlock()
		if !more {
			return
		}
	}
}

// scrub reads every object in turn and drops those that have gone bad, so that
// rot is found before a guest waits for the chunk.
func (c *Cache) scrub(ctx context.Context) {
	if c.cfg.ScrubRate < 0 {
		return
	}
	limit := rate.NewLimiter(rate.Limit(c.cfg.ScrubRate), slotMax)
	buf := make([]byte, slotMax)
	for i := uint64(0); ; i++ {
		t := c.table.Load()
		if i >= t.n {
			i = 0
			if limit.WaitN(ctx, slotMax) != nil { // an empty cache is not looked through without rest
				return
			}
		}
		h, pl := t.word0(i), t.place(i)
		if h <= wordRemoved {
			if i%4096 == 0 && ctx.Err() != nil {
				return
			}
			continue
		}
		if limit.WaitN(ctx, pl.length()) != nil {
			return
		}
		b := buf[:pl.length()]
		if c.read(h, pl, b, 0) && c.still(t, i, h, pl) && t.hash(content.Sum(b)) != h {
			c.drop(h, pl)
			c.metrics.corrupt.Inc()
			c.cfg.Log.Warn("the scrub found a bad chunk in the cache and dropped it")
		}
	}
}
