package cache

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
)

// Eviction is S3-FIFO's without its memory of the evicted. A new object is on
// probation; one that is used again, a period or more after, moves to the main
// queue when its turn comes, and one that is not goes. While a tenth or more is
// on probation only such objects go, so a scan pushes out itself. In the main
// queue each use buys one more round. The order of a queue is that of the slots:
// a hand goes round, and new objects take the slots that it has just freed. Which
// object a slot has, the names file says.

const (
	// An object is in one of the queues, or pinned.
	onProbation = iota
	onMain
	pinned

	// probationShare is the part, one in so many, that objects on probation keep.
	probationShare = 10
	// evictBatch is how many objects are evicted when room for one is needed.
	evictBatch = 32
	// lookMax bounds the objects weighed for a batch, some ms; after that any goes.
	lookMax = 8192
	// reserveTries bounds the ways tried to find one slot.
	reserveTries = 8
	// victimsMax is how many slabs are compared before one is emptied.
	victimsMax = 8
)

// hand is where a queue of a class goes on.
type hand struct{ slab, slot int }

// limit is how many bytes the slabs may take now: the quota, or what the disk has.
func (c *Cache) limit() int64 {
	free, total, err := DiskFree(c.cfg.Dir)
	if err != nil {
		return c.cfg.Quota
	}
	room := int64(free) - min(int64(total)/100*reserveShare, reserveMax)
	return min(c.cfg.Quota, int64(c.slabs.live)*slabSize+room)
}

func (c *Cache) overLimit() bool { return int64(c.slabs.live)*slabSize > c.limit() }

// makeRoom frees slots of a class, or a slab of another. A class pays for its growth as
// often as its share of the slabs, so shares follow what is put. Called with mu.
func (c *Cache) makeRoom(cl class) bool {
	if rand.IntN(c.slabs.live+1) < c.slabs.count[cl] {
		return c.evictFrom(cl) > 0 || c.emptyAny(cl)
	}
	return c.emptyAny(cl) || c.evictFrom(cl) > 0
}

// Evict removes chunks that are not pinned, the least useful first, until their slots
// make n bytes, and returns how many it were. Empty slabs go back to the disk then.
func (c *Cache) Evict(n int64) (freed int64) {
	for freed < n {
		c.mu.Lock()
		cl := class(0)
		for other := range class(classes) {
			if c.evictable(other)*other.size() > c.evictable(cl)*cl.size() {
				cl = other
			}
		}
		before := c.bytes
		ok := !c.closed.Load() && c.evictFrom(cl) > 0
		freed += before - c.bytes
		c.mu.Unlock()
		if !ok {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for number := range c.slabs.all {
		if b := &c.slabs.all[number]; b.used && b.taken == 0 && !c.closed.Load() {
			c.returnSlab(number)
		}
	}
	return freed
}

// evictable is how many objects of a class are not pinned. Called with mu.
func (c *Cache) evictable(cl class) int { return c.census[cl][onMain] + c.census[cl][onProbation] }

// evictFrom evicts a batch of a class. Called with mu.
func (c *Cache) evictFrom(cl class) (freed int) {
	if n := c.census[cl][onProbation]; n > 0 && n*probationShare >= c.evictable(cl) {
		freed = c.sweep(cl, onProbation)
	}
	if freed == 0 {
		freed = c.sweep(cl, onMain)
	}
	if freed == 0 {
		freed = c.sweep(cl, onProbation)
	}
	return freed
}

// sweep moves the hand of a queue until a batch is evicted. Called with mu.
func (c *Cache) sweep(cl class, queue int) (freed int) {
	h := &c.hands[cl][queue]
	looked := 0
	for range len(c.slabs.all) * (freqMax + 2) {
		if freed >= evictBatch || c.census[cl][queue] == 0 {
			break
		}
		if h.slab >= len(c.slabs.all) {
			*h = hand{}
		}
		if b := &c.slabs.all[h.slab]; b.used && b.class == cl && b.census[queue] > 0 {
			freed += c.sweepSlab(h, queue, evictBatch-freed, &looked)
			if h.slot < cl.slots() {
				continue
			}
		}
		*h = hand{slab: h.slab + 1}
	}
	return freed
}

// sweepSlab weighs a slab's objects from the hand on and evicts most. Called with mu.
func (c *Cache) sweepSlab(h *hand, queue, most int, looked *int) (freed int) {
	t, b := c.table.Load(), c.slabs.all[h.slab]
	records := c.names.slab(h.slab, b.class.slots(), c.slabName)
	for ; h.slot < b.class.slots() && freed < most; h.slot++ {
		at := newPlace(h.slab, h.slot)
		i, ok := c.entryAt(t, records, at)
		if !ok || t.word(i).kind() != queue {
			continue
		}
		*looked++
		switch {
		case t.word(i).freq() == 0 || *looked > lookMax:
			c.remove(t, i)
			c.giveSlot(at)
			freed++
		case queue == onMain:
			t.change(i, func(w word) word { return w.withFreq(max(w.freq(), 1) - 1) })
		default:
			c.mark(t, i, func(w word) word { return w.withFreq(0) | mainBit })
		}
		if !c.slabs.all[h.slab].used { // it was given back
			break
		}
	}
	return freed
}

// entryAt returns the entry of the object in a slot. Called with mu.
func (c *Cache) entryAt(t *table, records []byte, at place) (i int, ok bool) {
	if b := &c.slabs.all[at.slab()]; !b.has(at.slot()) {
		return 0, false
	}
	record := records[at.slot()*nameSize:][:nameSize]
	if n, named := decodeName(record, at); named {
		i, _, ok = t.find(c.secret.key(n.id))
		return i, ok && t.place(i) == at
	}
	if n := content.CID(record); n.IsHole() { // it is being written
		return 0, false
	}
	return t.locate(at) // a rotten name: slow, and rare
}

// mark changes the kind of an object. Called with mu.
func (c *Cache) mark(t *table, i int, f func(word) word) {
	was, is := t.change(i, f)
	c.counted(t.place(i), was, -1)
	c.counted(t.place(i), is, 1)
}

// remove takes an object out of the index; its slot is still taken. Called with mu.
func (c *Cache) remove(t *table, i int) {
	w, at := t.word(i), t.place(i)
	t.clear(i)
	c.turn(w.tag()).Add(1) // before anyone can write to the slot: see still
	c.counted(at, w, -1)
	c.evicted.Add(1)
}

// drop removes a bad object. A slot that can't be read stays taken until a restart.
func (c *Cache) drop(id content.CID, s sight, unreadable bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() || !c.still(s) {
		return
	}
	t := c.table.Load()
	i, _, ok := t.find(c.secret.key(id))
	if !ok {
		return
	}
	at := t.place(i)
	c.remove(t, i)
	if unreadable {
		c.names.blank(at)
	} else {
		c.giveSlot(at)
	}
}

// displace makes an entry free whose buckets are full: the least used of them
// that is not pinned goes. Called with mu.
func (c *Cache) displace(t *table, k key) (victim int, ok bool) {
	victim = -1
	for _, start := range t.starts(k) {
		for i := start; i < start+bucketSize; i++ {
			if w := t.word(i); !w.pinned() && (victim < 0 || w.freq() < t.word(victim).freq()) {
				victim = i
			}
		}
	}
	if victim < 0 {
		return 0, false
	}
	at := t.place(victim)
	c.remove(t, victim)
	c.giveSlot(at)
	return victim, true
}

// emptyAny empties a slab of another class and makes it unused: of some that chance
// picks the one with the fewest objects in the main queue, and of those the oldest. The
// last slab of a class goes only when there is no other. Called with mu.
func (c *Cache) emptyAny(except class) bool {
	return c.emptyOne(except, 2) || c.emptyOne(except, 1)
}

func (c *Cache) emptyOne(except class, least int) bool {
	var victims []int
	from := rand.IntN(len(c.slabs.all) + 1)
	for n := range c.slabs.all {
		number := (from + n) % len(c.slabs.all)
		b := &c.slabs.all[number]
		if b.used && b.class != except && b.census[pinned] == 0 && c.slabs.count[b.class] >= least {
			if victims = append(victims, number); len(victims) == victimsMax {
				break
			}
		}
	}
	slices.SortFunc(victims, func(a, b int) int {
		x, y := &c.slabs.all[a], &c.slabs.all[b]
		return cmp.Or(cmp.Compare(x.census[onMain], y.census[onMain]), cmp.Compare(x.born, y.born))
	})
	return slices.ContainsFunc(victims, c.emptySlab)
}

// emptySlab gives back a slab with all in it; false if one is being written. With mu.
func (c *Cache) emptySlab(number int) bool {
	t, slots := c.table.Load(), c.slabs.all[number].class.slots()
	records := c.names.slab(number, slots, c.slabName)
	for slot := range slots {
		at := newPlace(number, slot)
		if i, ok := c.entryAt(t, records, at); ok {
			c.remove(t, i)
			c.slabs.give(at)
			c.names.blank(at)
		}
	}
	if c.slabs.all[number].taken > 0 {
		return false
	}
	c.returnSlab(number)
	return true
}

// returnSlab makes an empty slab unused and its space the disk's, as a hole: a file
// never shrinks, and the slabs behind stay where they are. Where that is not supported
// the space stays the cache's, for other slabs. Called with mu.
func (c *Cache) returnSlab(number int) {
	c.slabs.drop(number)
	c.table.Load().setClass(number, 0)
	c.names.forget(number)
	f, off, ok := c.file(newPlace(number, 0), 0)
	if !ok {
		return
	}
	if err := punchHole(f, off, slabSize); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		c.cfg.Log.Warn("space of the cache is not given back", "err", err)
	}
}

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
