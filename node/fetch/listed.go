package fetch

import (
	"context"
	"errors"
	"slices"

	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// Part is what is wanted of one run, and is not here.
type Part = object.Part

// Record has t told of each chunk that guests read by this handle.
func (m *Image) Record(t *touch.Trace) { m.trace.Store(t) }

// Touched are the chunks that a boot has read by this handle, in the order of first touch, once that, or the use of its disk,
// is over; none where nothing is recorded, or m is nil.
func (m *Image) Touched(over bool) []uint64 {
	if m == nil {
		return nil
	}
	return m.trace.Load().Boot(over)
}

// Listed has nothing be read ahead of guests until what it returns is called: a list is brought in that says better what
// they are going to read.
func (m *Image) Listed() (over func()) {
	m.lists.Add(1)
	return func() { m.lists.Add(-1) }
}

// Lay finds where the chunks of a list lie that are not here, in the order of the list. What the root has not, and holes,
// are passed over, and so is what lies below nodes of the map that can't be had; the error says why they can't.
func (m *Image) Lay(ctx context.Context, list []uint64) ([]Part, error) {
	rs, how := m.rs.Load(), m.by(exchange.PriorityReadahead)
	list = slices.DeleteFunc(slices.Clone(list), func(index uint64) bool { return !rs.shape.Contains(content.Chunk(index)) })
	met := map[uint64]bool{}
	err := m.readLeaves(ctx, func(yield func(uint64) bool) {
		for _, index := range list {
			if n := index / content.MapFanout; !met[n] {
				if met[n] = true; !yield(n) {
					return
				}
			}
		}
	})
	how.local = true // what could be had of the map is here
	laid := object.Parts{}
	for _, index := range list {
		if o, ok, _ := m.f.chunk(ctx, rs, index, how); ok && !m.f.cfg.Cache.Has(o.ID) && !m.f.cfg.Cache.Full() { // which would not keep it
			laid.Add(o)
		}
	}
	return laid.All, m.why(err)
}

// Bring brings a part into the cache, as urgent as it says, and has came count raw bytes by source.
func (m *Image) Bring(ctx context.Context, as exchange.Priority, p Part, came *tally.Counters) (err error) {
	how := m.by(as)
	how.list = &p
	for _, fl := range m.f.join(m.rs.Load(), p.Objects, how) {
		if failed := fl.waitKept(ctx); failed != nil {
			err = errors.Join(err, m.why(failed))
			continue
		}
		m.count(fl)
		came[fl.from].Add(int64(len(fl.data.Bytes())))
	}
	return err
}
