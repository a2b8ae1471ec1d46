package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// endgameRuns is how many runs a prefetch waits for in the end when it asks a second
	// member of its farm for each: no slow one holds it up then, and what comes twice is
	// little of any image that is worth it, and crosses no uplink.
	endgameRuns = 4
	// choice is of how many runs that can be had at least one is chosen, while there are
	// more: those of a map node or two. leftMax bounds the runs that are known of.
	choice, leftMax = 64, 1024
	// farmPlaces is how many runs a whole farm has under way on its uplink, about: what it
	// carries in a third of a second at 1 Gbit/s, as much as queues at those that send.
	// More would wait there, though others could send them. Each member has a share.
	farmPlaces             = 40
	placesLeast, placesMax = 2, 8
	// takeOver is how long a farm that has come to lead a run, before announcements have had
	// their time, leaves it to the one that led it till then: what that has read meanwhile
	// is shown by then, first in its farm and then elsewhere.
	takeOver = 900 * time.Millisecond
	// alone is how long after a member of its farm has shown something that it lacks a
	// prefetch takes itself for the only one there: then it has others bring in as much as
	// if it led that itself.
	alone = time.Second
	// runTypical is a run's size, in bytes, to compare members by.
	runTypical = 1 << 20
)

// Order says which of the runs that a prefetch lacks it asks for next: those that can be
// had at once, so that none that is waited for holds the place of another. They are of
// kinds, each with places of its own, so that neither the uplink waits for the LAN nor the
// other way. The members of a crowd break ties each in its own way.
type Order struct {
	root   *Root
	left   []*Ordered
	of     map[uint64]*Ordered // those left, by their chunks
	out    []*Ordered          // under way
	under  [kinds]int          // of those
	busy   map[Peer]int        // of those, by the farms that are asked for them first
	helped time.Time           // when something was shown in this farm last
	added  int
	whole  bool // no more is added
	ended  bool // the last were asked of a second member
}

// kind is what a run is asked for as.
type kind uint8

const (
	// brings: this node leads it in its farm, and its farm outside, or members of other
	// farms show it.
	brings kind = iota
	// nears: a member of this farm shows it.
	nears
	// waits: others are to bring it in.
	waits

	kinds = int(waits) + 1
)

// Ordered is a run of an Order.
type Ordered struct {
	// Of is what the caller knows it by.
	Of any
	// Ask is the member of another farm to ask for it first; "" for none.
	Ask Peer

	at       uint64 // a chunk of it: who shows that mostly shows all
	key      string
	shown    [groups]int // by how many members
	since    time.Time   // when one of another farm did first
	led      bool        // by this node in its farm,
	leads    bool        // which leads it outside
	took     time.Time   // since when
	place    int
	tie      uint64
	farmsTie uint64
	kind     kind // that it was asked for as
	farm     Peer // of Ask
}

// Order returns an empty Order for a prefetch of the root; End forgets it.
func (r *Root) Order() *Order {
	o := &Order{root: r, of: map[uint64]*Ordered{}, busy: map[Peer]int{}}
	r.orders = append(r.orders, o)
	return o
}

// End has the Order kept up no more.
func (o *Order) End() {
	o.root.orders = slices.DeleteFunc(o.root.orders, func(q *Order) bool { return q == o })
}

// Add adds a run of that key that lacks a chunk.
func (o *Order) Add(key string, at uint64, of any) {
	m := o.root.m
	e := &Ordered{Of: of, at: at, key: key, led: m.Leads(key), place: o.added, tie: weight(key, m.self), farmsTie: weight(key, m.name)}
	o.added++
	e.leads = e.led && o.root.leads(key) == m.name
	for _, h := range o.root.held {
		if h.set.Has(at) {
			e.shown[h.group]++
		}
	}
	o.left = append(o.left, e)
	o.of[at] = e
}

// Whole says that all runs were added.
func (o *Order) Whole() { o.whole = true }

// Left is how many runs were not asked for.
func (o *Order) Left() int { return len(o.left) }

// Wants reports whether more runs are to be added: those of another map node.
func (o *Order) Wants(now time.Time) bool {
	if o.whole || len(o.left) >= leftMax {
		return false
	}
	v, here := o.root.view(now), 0
	for _, e := range o.left {
		if v.kind(e) != waits {
			here++
		}
	}
	return here < choice
}

// Next takes the run to ask for next; nil for none, for now: SettleLook later there may be
// one, or when another has come. Came follows.
func (o *Order) Next(now time.Time) *Ordered {
	v := o.root.view(now)
	if o.helped.IsZero() || !v.settled {
		o.helped = now
	}
	var room [kinds]bool
	for k := range room {
		room[k] = o.under[k] < o.places(kind(k), now)
	}
	var best [kinds]*Ordered
	var there []*Ordered // that members elsewhere show
	for _, e := range o.left {
		switch k := v.kind(e); {
		case !room[k] || k == waits && !v.settled:
		case k == brings && !e.leads:
			there = append(there, e)
		case best[k] == nil || e.before(best[k], k):
			best[k] = e
		}
	}
	if best[brings] == nil && len(there) > 0 {
		best[brings] = o.source(now, there)
	}
	for k, e := range best {
		if e != nil {
			o.take(e, kind(k), now)
			return e
		}
	}
	return nil
}

// places are how many runs of a kind are under way at most.
func (o *Order) places(k kind, now time.Time) int {
	switch {
	case k == brings:
		return min(max(placesLeast, farmPlaces/len(o.root.m.farm.members)), placesMax)
	case k == waits && now.Sub(o.helped) < alone:
		return placesLeast
	}
	return placesMax
}

// source returns the rarest of the runs that one member of another farm shows, whom it is
// to be asked of: one of the farm that the fewest are asked of already, if that is not slow.
func (o *Order) source(now time.Time, there []*Ordered) *Ordered {
	type source struct {
		found
		set  *content.Bitmap
		slow bool
		wait time.Duration
		tie  uint64
	}
	var all []source
	m := o.root.m
	for _, q := range o.root.found {
		if h := o.root.held[q.peer]; h != nil && !m.passes(q.peer, now, false) {
			all = append(all, source{q, h.set, m.loads.slow(q.peer, runTypical, now), m.loads.wait(q.peer, runTypical, now), q.rank ^ there[0].tie})
		}
	}
	slices.SortFunc(all, func(a, b source) int {
		if a.slow != b.slow {
			return cmp.Compare(a.wait, b.wait)
		}
		return cmp.Or(cmp.Compare(o.busy[a.farm], o.busy[b.farm]), cmp.Compare(a.wait, b.wait), cmp.Compare(a.tie, b.tie))
	})
	for _, s := range all {
		var best *Ordered
		for _, e := range there {
			if s.set.Has(e.at) && (best == nil || e.before(best, brings)) {
				best = e
			}
		}
		if best != nil {
			best.Ask = s.peer
			return best
		}
	}
	return nil
}

// take has a run be under way.
func (o *Order) take(e *Ordered, k kind, now time.Time) {
	o.left = slices.DeleteFunc(o.left, func(q *Ordered) bool { return q == e })
	delete(o.of, e.at)
	o.out = append(o.out, e)
	e.kind = k
	o.under[k]++
	if k == nears {
		o.helped = now
	}
	if e.Ask != "" {
		e.farm = o.root.farmOf[e.Ask]
		o.busy[e.farm]++
	}
}

// before reports whether a run is asked for before another of the same kind.
func (e *Ordered) before(other *Ordered, k kind) bool {
	switch {
	case k == brings && e.leads && other.leads:
		return e.place < other.place
	case k == waits && e.led != other.led:
		return e.led
	}
	return cmp.Or(cmp.Compare(e.total(), other.total()), cmp.Compare(e.tie, other.tie), cmp.Compare(e.place, other.place)) < 0
}

func (e *Ordered) total() (n int) {
	for _, shown := range e.shown {
		n += shown
	}
	return n
}

// view is what a run's kind depends on beside itself.
type view struct {
	now     time.Time
	settled bool // announcements have had their time, or
	open    bool // this farm's at least has
	crowd   float64
	of      float64 // how many farms each far member that is known stands for
}

func (r *Root) view(now time.Time) view {
	v := view{now: now, settled: r.SettlesIn(now) == 0, crowd: r.crowd(), of: 1}
	v.open = v.settled || r.visible
	far := 0
	for _, h := range r.held {
		if h.group == farGroup {
			far++
		}
	}
	if far > 0 {
		v.of = max(1, v.crowd/float64(far))
	}
	return v
}

// kind returns what a run is to be asked for as.
func (v view) kind(e *Ordered) kind {
	elsewhere := float64(e.shown[leadGroup]) + v.of*float64(e.shown[farGroup])
	switch {
	case e.shown[nearGroup] > 0:
		return nears
	case !e.led:
		return waits
	case elsewhere == 0:
		return v.origin(e)
	}
	if e.since.IsZero() {
		e.since = v.now
	}
	if v.now.Sub(e.since) < turnIn(e.farmsTie, v.crowd/elsewhere) { // others show it then
		return waits
	}
	return brings
}

// origin is kind for a run that nobody shows: who leads it reads the origin.
func (v view) origin(e *Ordered) kind {
	if !e.leads || !v.open {
		e.took = time.Time{}
		return waits
	}
	if e.took.IsZero() {
		e.took = v.now
	}
	if !v.settled && v.now.Sub(e.took) < takeOver {
		return waits
	}
	return brings
}

// Came notes that a run is under way no more. It returns, once, the last that are, for
// Endgame.
func (o *Order) Came(e *Ordered) (last []*Ordered) {
	o.out = slices.DeleteFunc(o.out, func(q *Ordered) bool { return q == e })
	o.under[e.kind]--
	if e.Ask != "" {
		o.busy[e.farm]--
	}
	if o.ended || !o.whole || len(o.left) > 0 || len(o.out) > endgameRuns {
		return nil
	}
	o.ended = true
	return slices.Clone(o.out)
}

// tally adds so much to how many show what a member does: -1 before that changes, and 1 after.
func (r *Root) tally(h *bitmap, by int) {
	for _, o := range r.orders {
		for _, e := range o.left {
			if h.set.Has(e.at) {
				e.shown[h.group] += by
			}
		}
	}
}

// tallyMore is tally of what a member shows beside what it did.
func (r *Root) tallyMore(h *bitmap, more *content.Bitmap) {
	for _, o := range r.orders {
		for at := range more.All {
			if e := o.of[at]; e != nil && !h.set.Has(at) {
				e.shown[h.group]++
			}
		}
	}
}
