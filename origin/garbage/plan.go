package garbage

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// repackMax bounds the packs that are written anew in one run: 16 GiB of them.
	repackMax = 512
	// repackDead is the part of a pack, one in so many, that has to be dead for it to be written anew, and
	// repackLeast as many bytes: each costs two puts and a read, and its readers a detour.
	repackDead  = 10
	repackLeast = 64 << 10
	// triedMax bounds, beside those, packs of which several roots need some: only their maps say whether it is the same, and
	// that is read once their grace is over. It bounds those that are suspect, too: anybody who writes to the store can say so.
	triedMax = 64

	// What becomes of what goes.
	thenDeleted, thenAnew = "is deleted", "is written anew"
)

// terms are what a run keeps to.
type terms struct {
	now   time.Time // by the store's clock
	epoch uint64
	grace time.Duration
	share float64
	yes   bool
	waste float64
}

// plan is what a run does with tombstones, and why. Deciding it does nothing.
type plan struct {
	finish  []Batch // condemned by a run that has ended before it was through
	condemn []Batch // their grace is over; less what lives by now
	release []Batch // less what lives by now
	fresh   []Batch // without keys of their own yet
	next    time.Time
	going   Amount // what is deleted or written anew
	waiting Amount
	marked  Amount
	live    Amount
	rows    map[Row]Amount
}

// decide is pure.
func decide(m *marks, t terms) *plan {
	p := &plan{rows: map[Row]Amount{}}
	for _, b := range m.batches {
		p.old(m, b, t)
	}
	p.mark(m, t)
	for i := range m.packs.rows {
		p.standing(m.pack(&m.packs.rows[i]), "named")
	}
	for i := range m.journals {
		p.standing(m.journals[i].object(), "named, or not in a root yet")
	}
	return p
}

func (p *plan) count(row Row, bytes int64) {
	a := p.rows[row]
	a.Add(bytes)
	p.rows[row] = a
}

// object is what a key is of.
type object struct {
	what, scope string
	size        int64
	state       *rowState
}

// stays reports whether it is not deleted, whatever batch has it: a stranger may have written that, as of long ago, or as one
// that a run has condemned.
func (o object) stays() bool { return o.state.is(isLive | isHeld | isYoung) }

func (s *survey) isYoung(key string) bool {
	o, there := s.object(key)
	return there && o.state.is(isYoung)
}

// object finds what a key is of; false where nothing has it any more.
func (s *survey) object(key string) (object, bool) {
	if strings.HasPrefix(key, string(content.KeyJournals)) {
		x := s.segment(key)
		if x == nil {
			return object{}, false
		}
		return x.object(), true
	}
	id, err := pack.ParseKey(key)
	if err != nil {
		return object{}, false
	}
	r := s.packs.find(id)
	if r == nil {
		return object{}, false
	}
	return s.pack(r), true
}

func (x *segment) object() object { return object{"segment", "", x.size, &x.state} }

func (s *survey) pack(r *row) object {
	what := "pack"
	if r.state.is(isStub) {
		what = "stub"
	}
	return object{what, s.packs.scopes[r.scope], int64(r.size), &r.state}
}

// old decides on a batch that is there.
func (p *plan) old(m *marks, b Batch, t terms) {
	early := !b.Condemned && time.UnixMilli(b.Since).After(m.began.Add(slipMax)) // by a clock that was wrong
	if early {
		b.Since = t.now.UnixMilli()
	}
	due := time.UnixMilli(b.Since).Add(t.grace)
	over := !due.After(m.began)
	rest := b
	if !b.Condemned {
		rest = b.without(func(key string) bool { return !p.stays(m, b, key) || over && m.isYoung(key) })
	}
	why, then := "unnamed", thenDeleted
	switch {
	case b.Condemned:
		p.finish = append(p.finish, b)
		why = "unnamed, half deleted"
	case over && rest.size() > 0:
		rest = settled(m, rest)
		p.condemn = append(p.condemn, rest)
	default:
		then = "waits"
		if rest.size() < b.size() || b.size() == 0 || early { // committers have taken all out
			p.release = append(p.release, rest)
		}
		if rest.size() > 0 && (p.next.IsZero() || due.Before(p.next)) {
			p.next = due
		}
	}
	for key := range rest.keys() {
		o, there := m.object(key)
		isAnew := slices.Contains(rest.Repack, key)
		if !there || b.Condemned && (isAnew && !o.state.is(isLive) || !isAnew && o.stays()) { // which is not written anew, and dies as any other
			continue
		}
		*o.state |= isTombstoned
		row := Row{What: o.what, Scope: o.scope, Why: why, Then: then}
		if isAnew {
			row.Why = "partly dead"
			if over || b.Condemned {
				row.Then = thenAnew
			}
		}
		p.count(row, o.size)
		if over || b.Condemned {
			p.going.Add(o.size)
		} else {
			p.waiting.Add(o.size)
		}
	}
}

// stays reports whether a key of a batch keeps its tombstone: what is dead is deleted, and what lives is repacked.
func (p *plan) stays(m *marks, b Batch, key string) bool {
	o, there := m.object(key)
	if !there || o.state.is(isHeld) {
		return false
	}
	repack := slices.Contains(b.Repack, key)
	if repack && o.state.is(isStub) {
		return false
	}
	if o.state.is(isLive) && !repack {
		p.count(Row{What: o.what, Scope: o.scope, Why: "named again", Then: "is unmarked"}, o.size)
		return false
	}
	return true
}

// settled deletes those packs of a batch that were to be written anew, and of which nothing lives by now.
func settled(m *marks, b Batch) Batch {
	dead := func(key string) bool { o, there := m.object(key); return there && !o.state.is(isLive) }
	for _, key := range b.Repack {
		if dead(key) {
			b.Delete = append(slices.Clone(b.Delete), key)
		}
	}
	slices.Sort(b.Delete)
	b.Repack = slices.DeleteFunc(slices.Clone(b.Repack), dead)
	return b
}

// mark gives tombstones to all that is dead and has none.
func (p *plan) mark(m *marks, t terms) {
	var dead []string
	take := func(key string, o object) {
		if o.state.is(isLive | isHeld | isTombstoned) {
			return
		}
		*o.state |= isTombstoned
		dead = append(dead, key)
		p.marked.Add(o.size)
		p.count(Row{What: o.what, Scope: o.scope, Why: "unnamed", Then: "is marked, goes " + span(t.grace) + " later"}, o.size)
	}
	for i := range m.journals {
		x := &m.journals[i]
		take(x.key, x.object())
	}
	for i := range m.packs.rows {
		r := &m.packs.rows[i]
		take(m.packs.id(r).Key(), m.pack(r))
	}
	anew := p.anew(m, t)
	for _, r := range anew {
		r.state |= isTombstoned
		p.marked.Add(int64(r.size))
		p.count(Row{What: "pack", Scope: m.packs.scopes[r.scope], Why: "partly dead", Then: "is written anew " + span(t.grace) + " later"}, int64(r.size))
	}
	since := t.now.UnixMilli()
	for keys := range slices.Chunk(dead, batchMax) {
		p.fresh = append(p.fresh, Batch{Since: since, Epoch: t.epoch, Delete: keys})
	}
	for rows := range slices.Chunk(anew, batchMax) {
		var keys []string
		for _, r := range rows {
			keys = append(keys, m.packs.id(r).Key())
		}
		p.fresh = append(p.fresh, Batch{Since: since, Epoch: t.epoch, Repack: slices.Sorted(slices.Values(keys))})
	}
	if len(p.fresh) > 0 && p.next.IsZero() {
		p.next = t.now.Add(t.grace)
	}
}

func span(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return d.String()
}

// anew chooses the packs to be written anew: those with the most dead in them first, as long as more than the waste that is
// allowed is in all. Of packs that several roots need it is not known how much they have in common: some are tried. So are
// some that are suspect, whatever is dead in them: what was damaged may be dead by now, as content was imported again.
func (p *plan) anew(m *marks, t terms) []*row {
	if t.waste < 0 {
		return nil
	}
	var able, maybe, suspect []*row
	total, dead, hidden := int64(0), int64(0), int64(0)
	for i := range m.packs.rows {
		r := &m.packs.rows[i]
		if !r.state.is(isLive) || r.state.is(isStub) {
			continue
		}
		total += int64(r.size)
		lost := max(0, int64(r.size)-int64(r.live))
		dead += lost
		switch {
		case r.state.is(isHeld | isTombstoned):
		case r.state.is(isSuspect):
			suspect = append(suspect, r)
		case worthwhile(lost, r.size):
			able = append(able, r)
		case r.state.is(isShared) && worthwhile(int64(r.size)-int64(r.most), r.size):
			maybe = append(maybe, r)
			hidden += int64(r.size) - int64(r.most) - lost
		}
	}
	part := func(r *row) float64 { return float64(r.live) / float64(r.size) }
	slices.SortFunc(able, func(a, b *row) int { return cmp.Or(cmp.Compare(part(a), part(b)), compareRows(*a, *b)) })
	n := 0
	for ; n < len(able) && n < repackMax && float64(dead) > t.waste*float64(total); n++ {
		dead -= int64(able[n].size) - int64(able[n].live)
	}
	if n < len(able) || float64(dead+hidden) <= t.waste*float64(total) {
		maybe = nil
	}
	some := func(rows []*row) []*row { // others each time
		rank := func(r *row) uint64 { return content.Weight(string(m.packs.id(r)), strconv.FormatUint(t.epoch, 10)) }
		slices.SortFunc(rows, func(a, b *row) int { return cmp.Compare(rank(a), rank(b)) })
		return rows[:min(len(rows), triedMax)]
	}
	return slices.Concat(able[:n], some(maybe), some(suspect))
}

// worthwhile reports whether so much that is dead pays for writing the rest of a pack anew.
func worthwhile(dead int64, size uint32) bool {
	return dead >= leastOf(int64(size))
}

func leastOf(size int64) int64 { return max(repackLeast, size/repackDead) }

// standing counts what keeps its place, and why it does if it lives.
func (p *plan) standing(o object, why string) {
	row := Row{What: o.what, Scope: o.scope, Why: why, Then: "stays"}
	if o.state.is(isLive) {
		p.live.Add(o.size)
	} else {
		row.Why = "held for what is broken"
	}
	if !o.state.is(isTombstoned) { // else it is counted with its batch
		p.count(row, o.size)
	}
}

// beyond reports whether more goes than may unasked.
func (p *plan) beyond(m *marks, t terms) bool {
	return !t.yes && float64(p.going.Bytes) > t.share*float64(m.total.Bytes)
}

// leave has what goes wait until somebody says that it may.
func (p *plan) leave() {
	p.waiting.Objects, p.waiting.Bytes = p.waiting.Objects+p.going.Objects, p.waiting.Bytes+p.going.Bytes
	rows := make(map[Row]Amount, len(p.rows))
	for row, amount := range p.rows {
		if row.Then == thenDeleted || row.Then == thenAnew {
			row.Then = "waits for --yes"
		}
		was := rows[row]
		rows[row] = Amount{was.Objects + amount.Objects, was.Bytes + amount.Bytes}
	}
	p.rows = rows
}

// sorted are the rows of the report.
func (p *plan) sorted() []Row {
	rows := make([]Row, 0, len(p.rows))
	for _, row := range slices.Collect(maps.Keys(p.rows)) {
		amount := p.rows[row]
		row.Amount = amount
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Then, b.Then), cmp.Compare(a.What, b.What), cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Why, b.Why))
	})
	return rows
}
