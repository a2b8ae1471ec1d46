package fetch

import (
	"slices"
	"time"

	"github.com/grangemesh/grange/node/why"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// note counts how long a read of a guest took, and keeps one that took long.
func (m *Image) note(r *chunkRead, err error) {
	took, from, id := time.Since(r.Began), FromCache, ""
	if fl := r.last; fl != nil && fl.ended.Load() && fl.err == nil {
		from, id = fl.from, fl.obj.ID.String()
	}
	if err == nil && r.how.priority == exchange.PriorityGuest { // else nothing came from anywhere
		m.spent[from].Add(int64(took))
		m.f.tally.Spent[from].Add(int64(took))
	}
	if took < why.Slow && r.how.span == nil {
		return
	}
	out := why.Read{At: r.Began, Offset: m.offset(r.index) + int64(r.off), Length: len(r.p), Took: took.Seconds(), Source: from.String(), Chunk: id}
	if err != nil {
		out.Source, out.Error = "", content.Line(err)
	}
	out = r.Of(out)
	r.how.span.End(out)
	if took >= why.Slow {
		m.slow.Note(out)
	}
}

func (m *Image) offset(index uint64) int64 {
	return int64(index) * int64(m.rs.Load().shape.ChunkMax)
}

// Slow returns the slowest reads of the last minutes: those first that are under way, of any
// handle on this root, then those of this one.
func (m *Image) Slow() []why.Read {
	var waits []*flight
	m.f.mu.Lock()
	for _, o := range m.f.objects {
		for fl := range o.Flights {
			fl := fl.Of.(*flight)
			if j := fl.job; j.rs.id == m.ID() && j.how.priority == exchange.PriorityGuest && j.trace != nil && fl.obj.Pos.Level == 0 && !fl.ended.Load() && time.Since(j.began) >= why.Slow {
				waits = append(waits, fl)
			}
		}
	}
	m.f.mu.Unlock()
	slices.SortFunc(waits, func(a, b *flight) int { return a.job.began.Compare(b.job.began) })
	var out []why.Read
	for _, fl := range waits[:min(len(waits), slowUnderWayMax)] {
		r := why.Read{At: fl.job.began, Offset: m.offset(fl.obj.Pos.Index), Chunk: fl.obj.ID.String(), Took: time.Since(fl.job.began).Seconds()}
		out = append(out, r.With(fl.job.trace))
	}
	return append(out, m.slow.Slowest(time.Now())...)
}

// slowUnderWayMax bounds the reads under way that are shown.
const slowUnderWayMax = 64
