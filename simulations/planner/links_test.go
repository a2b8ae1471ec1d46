package planner_test

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// The links of a mesh, in bytes a second.
const (
	nodeRate   = 10e9 / 8
	uplinkRate = 1e9 / 8
	originRate = 10e9 / 8
)

// link carries one run after the other, in the order in which they came to it: over many
// runs that comes to a fair share each, at an event a run.
type link struct {
	rate  float64
	queue []carried
	bytes int64
}

// carried is a run on its way along some links, until nobody wants it any more.
type carried struct {
	way    []*link
	wanted func() bool
	then   func()
}

// uplink is a farm's way to all others and to the origin.
type uplink struct {
	in, out link
	holds   map[int]int
}

// way is what a run that a node sends to another crosses.
func (n *node) way(to *node) []*link {
	if n.farm == to.farm {
		return []*link{&n.out, &to.in}
	}
	return []*link{&n.out, &n.up.out, &to.up.in, &to.in}
}

func (m *mesh) linked() bool { return m.size > 0 }

// carry takes a run along links, each of which gets it whole before the next one does.
func (m *mesh) carry(r carried) {
	if len(r.way) == 0 || !m.linked() {
		r.then()
		return
	}
	l := r.way[0]
	if l.queue = append(l.queue, r); len(l.queue) == 1 {
		m.serve(l)
	}
}

// serve carries what is first in the queue of a link, and then the next.
func (m *mesh) serve(l *link) {
	for len(l.queue) > 0 && !l.queue[0].wanted() {
		l.queue[0] = carried{}
		l.queue = l.queue[1:]
	}
	if len(l.queue) == 0 {
		return
	}
	l.bytes += int64(m.size)
	m.after(time.Duration(float64(m.size)/l.rate*float64(time.Second)), func() {
		r := l.queue[0]
		l.queue[0] = carried{}
		l.queue = l.queue[1:]
		m.serve(l)
		if r.way = r.way[1:]; r.wanted() {
			m.carry(r)
		}
	})
}

type event struct {
	at   time.Duration
	seq  int
	do   func()
	idle func() bool // that nothing is to be done any more; nil for never
}

// calendar is what is to happen. Only what is due in the present day is kept in order:
// most of what is to be waited for has come long before its time is over.
type calendar struct {
	day     int64
	today   events
	days    map[int64][]event
	ordered days // those that have something
}

// dayLength is short enough for a day to have few events.
const dayLength = time.Millisecond

func (c *calendar) push(e event) {
	day := int64(e.at / dayLength)
	if day <= c.day {
		heap.Push(&c.today, e)
		return
	}
	if c.days == nil {
		c.days = map[int64][]event{}
	}
	if _, ok := c.days[day]; !ok {
		heap.Push(&c.ordered, day)
	}
	c.days[day] = append(c.days[day], e)
}

func (c *calendar) pop() (e event, ok bool) {
	if len(c.today) == 0 {
		if len(c.ordered) == 0 {
			return event{}, false
		}
		c.day = heap.Pop(&c.ordered).(int64)
		c.today = c.days[c.day]
		delete(c.days, c.day)
		slices.SortFunc(c.today, func(a, b event) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.seq, b.seq)) })
	}
	return heap.Pop(&c.today).(event), true
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	last := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = event{}
	*q = (*q)[:len(*q)-1]
	return last
}

type days []int64

func (q days) Len() int           { return len(q) }
func (q days) Less(i, j int) bool { return q[i] < q[j] }
func (q days) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *days) Push(x any)        { *q = append(*q, x.(int64)) }
func (q *days) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}
