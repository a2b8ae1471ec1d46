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

type bitmap struct {
	set   *content.Bitmap
	far   bool
	bytes int
}

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
				if h.far == far {
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
	if h.far = far; anew || h.set == nil {
		h.set = set
	} else {
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
		if h.far && (h.bytes > most || h.bytes == most && p < out) {
			out, most = p, h.bytes
		}
	}
	return out
}

// Drop forgets what a member showed.
func (r *Root) Drop(p Peer) {
	if h := r.held[p]; h != nil {
		r.resize(h, 0)
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
		for _, i := range indexes {
			h.set.Remove(i)
		}
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

// shows reports whether a member shows anything.
func (r *Root) shows(p Peer) bool {
	h := r.held[p]
	return h != nil && h.set.Len() > 0
}

// holder returns the member to ask of those that show what a job lacks, far away or of
// this farm, and are not passed over: who shows most of it comes first. A map node goes
// with the chunks that it names, so for one they are those that show most of all. Members
// that show the same take turns: who comes first changes with the run.
func (j *Job) holder(far bool) Peer {
	r := j.cfg.Root
	r.use()
	spread := spread{}
	if far {
		spread = r.spread(j.patientFor())
	}
	var best Peer
	var most, heaviest uint64
	for p, h := range r.held {
		if h.far != far || j.asked[p] || j.aside(p) {
			continue
		}
		n := uint64(0)
		if j.cfg.Level > 0 {
			n = h.set.Len()
		} else {
			for _, fl := range j.flights {
				if !fl.ended && h.set.Has(fl.index) {
					n++
				}
			}
		}
		if n == 0 || n < most {
			continue
		}
		w := content.Weight(j.cfg.Key, string(p), string(j.m.self))
		if spread.spares(p, w) {
			continue
		}
		if n > most || w > heaviest || w == heaviest && p < best {
			best, most, heaviest = p, n, w
		}
	}
	return best
}
