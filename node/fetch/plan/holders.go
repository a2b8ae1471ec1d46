package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// memberMax bounds the bitmap of a member, in bytes: any set of a root of 2^24
	// chunks, a TiB of the default size.
	memberMax = 2 << 20
	// rootMax bounds those of one root: of eight such members, or of all that are
	// followed for roots of 256 GiB.
	rootMax = 16 << 20
	// nodeMax bounds those of all roots.
	nodeMax = 48 << 20
	// bitmapOverhead is what a bitmap takes besides its containers.
	bitmapOverhead = 256
)

// group is whose bitmap it is: a member's of this farm, of another, or of one that leads.
type group uint8

const (
	nearGroup group = iota
	farGroup
	leadGroup

	groups = int(leadGroup) + 1
)

type bitmap struct {
	set   *content.Bitmap
	group group
	bytes int
}

func (h *bitmap) far() bool { return h.group != nearGroup }

// Bytes returns about how much memory all bitmaps take.
func (m *Member) Bytes() int { return m.bytes }

// trim makes room: bitmaps of members far away go first, then those of this farm,
// those of the roots that were looked at longest ago first.
func (m *Member) trim() {
	for _, far := range []bool{true, false} {
		if m.bytes <= nodeMax {
			return
		}
		for _, r := range slices.SortedFunc(maps.Keys(m.roots), func(a, b *Root) int { return cmp.Compare(a.used, b.used) }) {
			if m.bytes <= nodeMax {
				return
			}
			for p, h := range r.held {
				if h.far() == far {
					r.Drop(p)
				}
			}
		}
	}
}

// Show takes what a member shows: all that it holds, when anew, else additions to
// that. The set is the root's from then on. An error is content.ErrNoSpace: there is
// no room for what it shows, so it shows nothing; it is asked last, not shut out.
func (r *Root) Show(p Peer, far, anew bool, set *content.Bitmap) error {
	h := r.held[p]
	if h == nil {
		h = new(bitmap)
		r.held[p] = h
		r.m.roots[r] = struct{}{}
		if len(r.held) == 1 {
			r.use()
		}
	}
	g := r.groupOf(p, far)
	if anew || h.set == nil || g != h.group {
		if h.set != nil {
			r.tally(h, -1)
		}
		if h.group = g; anew || h.set == nil {
			h.set = set
		} else {
			h.set.Union(set)
		}
		r.tally(h, 1)
	} else {
		r.tallyMore(h, set)
		h.set.Union(set)
	}
	r.resize(h, h.set.Bytes()+bitmapOverhead)
	if h.bytes > memberMax {
		r.Drop(p)
	}
	for r.bytes > rootMax {
		r.Drop(r.spare(p))
	}
	r.m.trim()
	if r.held[p] == nil {
		return fmt.Errorf("%w: what it shows takes too much memory", content.ErrNoSpace)
	}
	return nil
}

// groupOf returns the group that a member's bitmap belongs to.
func (r *Root) groupOf(p Peer, far bool) group {
	switch {
	case !far:
		return nearGroup
	case slices.Contains(r.farms.members, r.farmOf[p]):
		return leadGroup
	}
	return farGroup
}

// regroup notes that other farms lead.
func (r *Root) regroup() {
	for p, h := range r.held {
		if g := r.groupOf(p, h.far()); g != h.group {
			r.tally(h, -1)
			h.group = g
			r.tally(h, 1)
		}
	}
	for _, o := range r.orders {
		for _, e := range o.left {
			e.leads = e.led && r.leads(e.key) == r.m.name
		}
	}
}

func (r *Root) use() {
	r.m.uses++
	r.used = r.m.uses
}

func (r *Root) resize(h *bitmap, now int) {
	r.bytes += now - h.bytes
	r.m.bytes += now - h.bytes
	h.bytes = now
}

// spare is whose bitmap to drop: the largest of those far away, else that of the
// member which has shown more last.
func (r *Root) spare(last Peer) Peer {
	out, most := last, 0
	for p, h := range r.held {
		if h.far() && (h.bytes > most || h.bytes == most && p < out) {
			out, most = p, h.bytes
		}
	}
	return out
}

// Drop forgets what a member showed.
func (r *Root) Drop(p Peer) {
	if h := r.held[p]; h != nil {
		r.resize(h, 0)
		r.tally(h, -1)
		delete(r.held, p)
	}
	if len(r.held) == 0 {
		delete(r.m.roots, r)
	}
}

// Lacks notes what a member turned out not to hold, whatever its bitmap said: it
// may have evicted it.
func (r *Root) Lacks(p Peer, indexes []uint64) {
	if h := r.held[p]; h != nil {
		r.tally(h, -1)
		for _, i := range indexes {
			h.set.Remove(i)
		}
		r.tally(h, 1)
		r.resize(h, h.set.Bytes()+bitmapOverhead)
	}
}

// Counts returns how many chunks members show.
func (r *Root) Counts() map[Peer]uint64 {
	out := map[Peer]uint64{}
	for p, h := range r.held {
		out[p] = h.set.Len()
	}
	return out
}

// Shown reports whether any member shows a chunk.
func (r *Root) Shown(index uint64) bool {
	for _, h := range r.held {
		if h.set.Has(index) {
			return true
		}
	}
	return false
}

// shows reports whether a member shows anything.
func (r *Root) shows(p Peer) bool {
	h := r.held[p]
	return h != nil && h.set.Len() > 0
}

// holder returns the member to ask of those that show what a job lacks, far away or of
// this farm, and are not passed over: who shows most of it comes first; what a slow one
// shows counts less. Of those that show
// the same, two by chance, which changes with the run and with who asks, the one is asked
// that is expected to send it sooner: so nobody is asked by all that think it the best.
func (j *Job) holder(far bool) Peer {
	r := j.cfg.Root
	r.use()
	if p := j.cfg.Ask; far && p != "" && !j.asked[p] && !j.aside(p) && j.shown(p) > 0 {
		return p
	}
	spares := far && j.crowded()
	type chance struct {
		peer   Peer
		weight uint64
	}
	var first, second chance
	most, need, mine := 0, j.need(), weight(j.cfg.Key, j.m.self)
	for p, h := range r.held {
		if h.far() != far || !j.mayShow(h) || j.asked[p] || j.aside(p) || spares && h.group == leadGroup {
			continue
		}
		n := lateShare * j.shown(p)
		if j.m.loads.slow(p, need, j.now) {
			n /= lateShare
		}
		if n == 0 || n < most {
			continue
		}
		c := chance{p, weight(j.cfg.Key, p) ^ mine}
		if n > most {
			most, first, second = n, chance{}, chance{}
		}
		switch {
		case c.weight > first.weight || c.weight == first.weight && p < first.peer:
			first, second = c, first
		case c.weight > second.weight:
			second = c
		}
	}
	if second.peer != "" && j.m.loads.wait(second.peer, need, j.now) < j.m.loads.wait(first.peer, need, j.now) {
		return second.peer
	}
	return first.peer
}

// mayShow reports whether a bitmap may show something that a job lacks: most don't.
func (j *Job) mayShow(h *bitmap) bool {
	return j.cfg.Level > 0 || len(j.flights) != 1 || h.set.Has(j.flights[0].index)
}

// shown is how much of what a job lacks a member shows. A map node goes with the chunks
// that it names, so for one it is all that it shows.
func (j *Job) shown(p Peer) (n int) {
	h := j.cfg.Root.held[p]
	switch {
	case h == nil:
	case j.cfg.Level > 0:
		return int(h.set.Len())
	default:
		for _, fl := range j.flights {
			if !fl.ended && h.set.Has(fl.index) {
				n++
			}
		}
	}
	return n
}

// instead returns a member of this farm that shows all that is missing and is expected to
// send it long before the one that is due; else that one. Nobody leads for it.
func (j *Job) instead(due Peer) Peer {
	if need := j.need(); j.cfg.Level == 0 {
		if p := j.holder(false); p != "" && j.shown(p) == j.left && j.m.loads.slower(j.m.loads.wait(due, need, j.now), insteadShare, p, need, j.now) {
			return p
		}
	}
	return due
}
