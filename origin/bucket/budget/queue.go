package budget

import (
	"maps"
	"slices"
)

// oldestEvery is of how many that are served one is who has waited longest, whatever its
// class: little for those that are needed, and nobody waits for ever.
const oldestEvery = 16

// queue says who is next: by class, then evenly among the askers, then by age. Evenly is by
// start-time fair queueing: each asker has a clock that what it is given moves on, and who
// comes begins where those are that are served. It is pure.
type queue struct {
	waiting []*ticket // by age
	clocks  map[line]float64
	now     [classes]float64 // the clock of who was served last
	served  int
}

// line are the tickets of an asker in a class.
type line struct {
	class Class
	asker string
}

// ticket waits for n of what is shared.
type ticket struct {
	turn  *Turn
	n     int
	given chan struct{} // closed when it is; class is set before
	class Class         // in which it was
}

func (t *ticket) line() line { return line{Class(t.turn.class.Load()), t.turn.asker} }

func (q *queue) push(t *ticket) { q.waiting = append(q.waiting, t) }

// oldest reports whether the next is who has waited longest.
func (q *queue) oldest() bool { return q.served%oldestEvery == oldestEvery-1 }

// next returns who is, of classes that may go, nil if there is none.
func (q *queue) next(may func(Class) bool) *ticket {
	var best *ticket
	var of line
	for _, t := range q.waiting {
		l := t.line()
		if !may(l.class) || best != nil && (l.class < of.class || l.class == of.class && q.clock(l) >= q.clock(of)) {
			continue
		}
		if best, of = t, l; q.oldest() {
			break
		}
	}
	return best
}

func (q *queue) clock(l line) float64 { return max(q.now[l.class], q.clocks[l]) }

// serve takes out a ticket that is next.
func (q *queue) serve(t *ticket) {
	l := t.line()
	at := q.clock(l)
	if !q.oldest() { // which is out of turn
		q.now[l.class] = at
	}
	if q.clocks == nil {
		q.clocks = map[line]float64{}
	}
	q.clocks[l] = at + float64(t.n)
	maps.DeleteFunc(q.clocks, func(l line, at float64) bool { return at <= q.now[l.class] })
	q.served++
	q.remove(t)
	t.class = l.class
}

// remove takes a ticket out; false if it was not there. Where nobody waits, all begin anew.
func (q *queue) remove(t *ticket) bool {
	i := slices.Index(q.waiting, t)
	if i < 0 {
		return false
	}
	if q.waiting = slices.Delete(q.waiting, i, i+1); len(q.waiting) == 0 {
		q.clocks, q.now = nil, [classes]float64{}
	}
	return true
}
