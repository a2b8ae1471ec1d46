package plan

import (
	"cmp"
	"slices"

	"github.com/grangemesh/grange/origin/content"
)

// endgameRuns is how many runs a prefetch waits for in the end when it asks a second member
// of its farm for each: no slow one holds it up then, and what comes twice is little of any
// image that is worth it, and crosses no uplink.
const endgameRuns = 4

// Order says which of the runs that a prefetch lacks it asks for next. They are of two
// kinds, and about as much of each is under way while there are both, so that neither the
// origin nor the farm waits for the other: what is to be brought in, first what this node
// leads, as it lies in the packs, then what other leads have yet to begin with; and what
// members show, the rarest first. The members of a crowd break ties each in its own way.
type Order struct {
	root  *Root
	left  []*Ordered
	of    map[uint64]*Ordered // those left, by their chunks
	out   []*Ordered          // under way
	added int
	bring int  // of those under way, to be brought in
	whole bool // no more is added
	ended bool // the last were asked of a second member
}

// Ordered is a run of an Order.
type Ordered struct {
	// Of is what the caller knows it by.
	Of any

	at    uint64 // a chunk of it: who shows that mostly shows all
	shown int    // by how many members
	led   bool
	place int
	tie   uint64
	bring bool // it was to be brought in when it was asked for
}

// Order returns an empty Order for a prefetch of the root; End forgets it.
func (r *Root) Order() *Order {
	o := &Order{root: r, of: map[uint64]*Ordered{}}
	r.orders = append(r.orders, o)
	return o
}

// End has the Order kept up no more.
func (o *Order) End() {
	o.root.orders = slices.DeleteFunc(o.root.orders, func(q *Order) bool { return q == o })
}

// Add adds a run of that key that lacks a chunk.
func (o *Order) Add(key string, at uint64, of any) {
	e := &Ordered{Of: of, at: at, led: o.root.m.Leads(key), place: o.added, tie: weight(key, o.root.m.self)}
	o.added++
	for _, h := range o.root.held {
		if h.set.Has(at) {
			e.shown++
		}
	}
	o.left = append(o.left, e)
	o.of[at] = e
}

// Whole says that all runs were added.
func (o *Order) Whole() { o.whole = true }

// Left is how many runs were not asked for.
func (o *Order) Left() int { return len(o.left) }

// Next takes the run to ask for next; nil for none. Came follows.
func (o *Order) Next() *Ordered {
	if len(o.left) == 0 {
		return nil
	}
	bring := 2*o.bring <= len(o.out)
	at := 0
	for i, e := range o.left {
		if e.before(o.left[at], bring) {
			at = i
		}
	}
	e := o.left[at]
	o.left = slices.Delete(o.left, at, at+1)
	delete(o.of, e.at)
	o.out = append(o.out, e)
	if e.bring = e.brings(); e.bring {
		o.bring++
	}
	return e
}

// brings reports whether a run is to be brought in.
func (e *Ordered) brings() bool { return e.led || e.shown == 0 }

// before reports whether a run is asked for before another; bring says which kind is.
func (e *Ordered) before(other *Ordered, bring bool) bool {
	switch {
	case e.brings() != other.brings():
		return e.brings() == bring
	case e.led || other.led:
		return e.led && (!other.led || e.place < other.place)
	}
	return cmp.Or(cmp.Compare(e.shown, other.shown), cmp.Compare(e.tie, other.tie), cmp.Compare(e.place, other.place)) < 0
}

// Came notes that a run is under way no more. It returns, once, the last that are, for
// Endgame.
func (o *Order) Came(e *Ordered) (last []*Ordered) {
	o.out = slices.DeleteFunc(o.out, func(q *Ordered) bool { return q == e })
	if e.bring {
		o.bring--
	}
	if o.ended || !o.whole || len(o.left) > 0 || len(o.out) > endgameRuns {
		return nil
	}
	o.ended = true
	return slices.Clone(o.out)
}

// tally adds so much to how many show what a member does: -1 before that changes, and 1 after.
func (r *Root) tally(set *content.Bitmap, by int) {
	for _, o := range r.orders {
		for _, e := range o.left {
			if set.Has(e.at) {
				e.shown += by
			}
		}
	}
}

// tallyMore is tally of what a member shows beside what it did.
func (r *Root) tallyMore(before, more *content.Bitmap) {
	for _, o := range r.orders {
		for at := range more.All {
			if e := o.of[at]; e != nil && !before.Has(at) {
				e.shown++
			}
		}
	}
}
