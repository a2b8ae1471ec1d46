package fetch

import (
	"cmp"
	"slices"
	"time"

	"github.com/grangemesh/grange/node/why"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// traced returns where it is noted what is tried for a request: of those alone that guests
// wait for, or may come to.
func (r request) traced() *why.Trace {
	if r.priority < exchange.PriorityReadahead || r.from != "" {
		return nil
	}
	return new(why.Trace)
}

// trail is the flights that a guest's read has waited for.
type trail struct {
	began   time.Time
	flights []*flight
}

// tried notes a flight; nil notes nothing.
func (t *trail) tried(fl *flight) {
	if t != nil && len(t.flights) < trailMax {
		t.flights = append(t.flights, fl)
	}
}

// trailMax bounds the flights of a read that are remembered: the map's, and some in vain.
const trailMax = 8

// noteSlow keeps a read of a guest that took long.
func (m *Image) noteSlow(r *guestRead, err error) {
	took := time.Since(r.began)
	if took < why.Slow {
		return
	}
	out := why.Read{At: r.began, Offset: m.offset(r.index) + int64(r.off), Length: len(r.p), Took: took.Seconds(), Source: FromCache.String()}
	var traces []*why.Trace
	for _, fl := range r.flights {
		traces = append(traces, fl.job.trace)
		if fl.ended.Load() && fl.err == nil {
			out.Source, out.Chunk = fl.from.String(), fl.obj.ID.String()
		}
	}
	if err != nil {
		out.Source, out.Error = "", content.Line(err)
	}
	m.slow.Note(out.With(slices.Compact(traces)...))
}

func (m *Image) offset(index uint64) int64 {
	return int64(index) * int64(m.rs.Load().shape.ChunkMax)
}

// Slow returns the slowest reads of the last minutes: those first that are under way, of any
// handle on this root, then those of this one.
func (m *Image) Slow() []why.Read {
	now := m.f.cfg.Now()
	var out []why.Read
	m.f.mu.Lock()
	for _, o := range m.f.objects {
		for fl := range o.Flights {
			fl := fl.Of.(*flight)
			if took := time.Since(fl.job.began); fl.job.rs.id == m.ID() && fl.job.how.priority == exchange.PriorityGuest && fl.job.trace != nil && fl.obj.Pos.Level == 0 && !fl.ended.Load() && took >= why.Slow {
				out = append(out, why.Read{At: fl.job.began, Offset: m.offset(fl.obj.Pos.Index), Chunk: fl.obj.ID.String(), Took: took.Seconds()}.With(fl.job.trace))
			}
		}
	}
	m.f.mu.Unlock()
	slices.SortFunc(out, func(a, b why.Read) int { return cmp.Compare(b.Took, a.Took) })
	return append(out[:min(len(out), slowUnderWayMax)], m.slow.Slowest(now)...)
}

// slowUnderWayMax bounds the reads under way that are shown.
const slowUnderWayMax = 64
