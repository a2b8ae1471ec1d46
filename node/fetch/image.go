package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/patience"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/readahead"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/node/why"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// Image is a root that is read: one handle a volume, which counts where its bytes
// came from. Safe for concurrent use.
type Image struct {
	f     *Fetcher
	rs    atomic.Pointer[rootState] // by which head it is read, for now
	bytes tally.Counters
	spent tally.Counters // nanoseconds that guests have waited for what came from there
	ahead readahead.Window
	trace atomic.Pointer[touch.Trace] // nil while nothing is recorded
	lists atomic.Int32                // lists that are brought in: what else the guest is going to read they say
	waits patience.Waits
	// strict is the name for which nobody is to read the origin; "" where they may.
	strict string
	slow   why.Log
}

func (f *Fetcher) image(rs *rootState, as []content.Ref) *Image {
	m := &Image{f: f}
	if i := slices.IndexFunc(as, f.cfg.NoOrigin); i >= 0 {
		m.strict = as[i].String()
	}
	m.rs.Store(rs)
	return m
}

func (m *Image) by(p exchange.Priority) request {
	return request{priority: p, noOrigin: m.strict != ""}
}

// why says of what failed that the origin was not asked.
func (m *Image) why(err error) error {
	if m.strict == "" || err == nil || !mayCome(err) {
		return err
	}
	return fmt.Errorf("%s is not read at the origin, as --no-origin-fallback says: %w", m.strict, err)
}

// byHeads reads by the head that served last, and where that fails by the others of the
// root that were looked up: the same content may lie in other packs, too.
func (m *Image) byHeads(ctx context.Context, read func(*rootState) error) error {
	rs := m.rs.Load()
	err := read(rs)
	if err == nil || ctx.Err() != nil {
		return err
	}
	for _, other := range slices.Backward(m.f.heads(rs.id)) { // the latest first
		if other == rs || other.introducer != "" {
			continue
		}
		again := read(other)
		if again == nil {
			m.rs.CompareAndSwap(rs, other)
			return nil
		}
		if mayCome(again) {
			err = again
		}
	}
	return err
}

// ID returns the root's CID.
func (m *Image) ID() content.CID { return m.rs.Load().id }

// Root describes the image.
func (m *Image) Root() content.Root { return m.rs.Load().head.Root }

// Bytes returns how many bytes were read through this handle, by source.
func (m *Image) Bytes() Bytes { return m.bytes.Now() }

// TryReadChunk fills p from byte off of a chunk if it is a hole, or in the cache and
// there in memory; it neither waits nor allocates. false means to use ReadChunk.
func (m *Image) TryReadChunk(index uint64, off int, p []byte) bool {
	leaf := m.rs.Load().leaf(index)
	if leaf == nil || m.ahead.Marks(index) {
		return false
	}
	id := leaf.Node.Entry(int(index % content.MapFanout))
	if id.IsHole() {
		clear(p)
		return true
	}
	if !m.f.cfg.Cache.TryReadAt(id, p, off) {
		return false
	}
	m.trace.Load().Touch(index)
	m.countCached(p)
	return true
}

func (m *Image) countCached(p []byte) {
	m.bytes[FromCache].Add(int64(len(p)))
	m.rs.Load().count(FromCache, len(p))
}

// ReadChunk fills p from byte off of a chunk, for a guest that waits for it, and
// asks for what the guest will probably read next. A chunk that is damaged in the
// cache is fetched again. It waits while a source may come back, see Config.IOTimeout;
// the error lists the sources tried.
func (m *Image) ReadChunk(ctx context.Context, index uint64, off int, p []byte) error {
	if run, ok := m.ahead.Reached(index); ok {
		m.runAhead(run)
	}
	return m.readChunk(ctx, exchange.PriorityGuest, index, off, p)
}

// ReadInTurn is ReadChunk for who is in no hurry: what other members have, or are to bring in, is waited for, and guests go
// first.
func (m *Image) ReadInTurn(ctx context.Context, index uint64, off int, p []byte) error {
	return m.readChunk(ctx, exchange.PriorityPrefetch, index, off, p)
}

func (m *Image) readChunk(ctx context.Context, priority exchange.Priority, index uint64, off int, p []byte) error {
	leaf := m.rs.Load().leaf(index)
	if leaf != nil && m.readHere(index, leaf.Node.Entry(int(index%content.MapFanout)), off, p) {
		return nil
	}
	how := m.by(priority)
	how.looks, how.span = true, m.f.cfg.Spans.Begin("read", exchange.Trace{})
	r := &chunkRead{m: m, how: how, index: index, off: off, p: p, looked: leaf != nil, Trail: why.Trail{Began: time.Now()}}
	err := m.patiently(ctx, func(ctx context.Context) error { // tries the sources once
		return m.byHeads(ctx, func(rs *rootState) error { return r.read(ctx, rs) })
	})
	m.note(r, err)
	return err
}

func (m *Image) readHere(index uint64, id content.CID, off int, p []byte) bool {
	if id.IsHole() {
		clear(p)
		return true
	}
	m.trace.Load().Touch(index)
	if m.f.cfg.Cache.ReadAt(id, p, off) != nil {
		return false
	}
	m.countCached(p)
	return true
}

// chunkRead is a ReadChunk of what is not here.
type chunkRead struct {
	m      *Image
	how    request
	index  uint64
	off    int
	p      []byte
	looked bool // into the cache, for the next climb
	missed bool // readahead was told
	why.Trail
	last *flight
}

func (r *chunkRead) read(ctx context.Context, rs *rootState) error {
	m, off, p := r.m, r.off, r.p
	how := r.how
	how.trail = &r.Trail
	o, ok, err := m.f.chunk(ctx, rs, r.index, how)
	if err != nil || !(r.looked && ok) && m.readHere(r.index, o.ID, off, p) { // the zero object is a hole
		return err
	}
	r.looked = false
	fl := m.f.join(rs, []object.Object{o}, r.how)[0]
	r.last = fl
	r.Tried(fl.job.trace)
	if !r.missed && !fl.ended.Load() && fl.job.how.priority == exchange.PriorityGuest { // nor asked for ahead
		r.missed = true
		if run, ok := m.ahead.Missed(r.index); ok {
			m.runAhead(run)
		}
	}
	if !fl.flows(ctx) {
		m.f.leave(fl)
		fl = m.f.join(rs, []object.Object{o}, r.how)[0]
		r.last = fl
		r.Tried(fl.job.trace)
	}
	v, err := fl.wait(ctx)
	if err != nil {
		return err
	}
	if off < 0 || off+len(p) > len(v.Bytes()) {
		return fmt.Errorf("chunk %d of root %s: %w: it has %d bytes", r.index, rs.id, content.ErrCorrupt, len(v.Bytes()))
	}
	m.count(fl)
	copy(p, v.Bytes()[off:])
	return nil
}

// count counts what a flight has brought, once, however many waited for it.
func (m *Image) count(fl *flight) {
	if !fl.counted.Swap(true) {
		m.bytes[fl.from].Add(int64(len(fl.data.Bytes())))
	}
}

// runAhead asks for a run, in one map node. A full cache would not keep it.
func (m *Image) runAhead(run readahead.Run) {
	rs := m.rs.Load()
	if run.From >= rs.shape.Chunks || m.f.cfg.Cache.Full() || m.lists.Load() > 0 {
		return
	}
	node := run.From / content.MapFanout
	end, ok := m.ahead.Begin(run, (node+1)*content.MapFanout) // now: once its map node is here the guest may be past it
	if !ok {
		return
	}
	if leaf := rs.leaf(run.From); leaf != nil {
		m.runIn(rs, leaf, run.From, end)
	} else if !m.f.start(func() {
		leaf, _ := m.f.node(m.f.ctx, rs, content.Pos{Level: 1, Index: node}, m.by(exchange.PriorityReadahead))
		m.runIn(rs, leaf, run.From, end)
	}) {
		m.ahead.End()
	}
}

// runIn asks for the chunks from one on to before another that a map node names, nil for
// none.
func (m *Image) runIn(rs *rootState, leaf *mapNode, from, end uint64) {
	var objects []object.Object
	for i := from; i < end && leaf != nil; i++ {
		if o, ok := leaf.Chunk(i, rs.reach()); ok && !m.f.cfg.Cache.Has(o.ID) {
			objects = append(objects, o)
		}
	}
	if len(objects) == 0 {
		m.ahead.End()
		return
	}
	flights := m.f.join(rs, objects, m.by(exchange.PriorityReadahead))
	if !m.f.start(func() {
		defer m.ahead.End()
		for _, fl := range flights {
			if fl.waitKept(m.f.ctx) == nil {
				m.count(fl)
			}
		}
	}) {
		m.ahead.End()
		m.f.leave(flights...)
	}
}

// NextData returns the first run of chunks from index on that are not holes;
// io.EOF when there is none. It may fetch parts of the map.
func (m *Image) NextData(ctx context.Context, index uint64) (start, end uint64, err error) {
	shape := m.rs.Load().shape
	for index < shape.Chunks {
		n := index / content.MapFanout
		m.readMapAhead(ctx, n, shape.Leaves())
		var leaf *mapNode
		if err := m.patiently(ctx, func(ctx context.Context) (err error) {
			leaf, err = m.leaf(ctx, n, m.by(exchange.PriorityGuest))
			return err
		}); err != nil {
			return 0, 0, err
		}
		limit := min((n+1)*content.MapFanout, shape.Chunks)
		for ; leaf != nil && index < limit; index++ {
			if leaf.Node.Entry(int(index % content.MapFanout)).IsHole() {
				continue
			}
			for end = index + 1; end < limit && !leaf.Node.Entry(int(end%content.MapFanout)).IsHole(); end++ {
			}
			return index, end, nil
		}
		index = limit
	}
	return 0, 0, io.EOF
}

// leaf returns the map node above chunks; nil is a hole.
func (m *Image) leaf(ctx context.Context, n uint64, how request) (leaf *mapNode, err error) {
	err = m.byHeads(ctx, func(rs *rootState) (err error) {
		leaf, err = m.f.node(ctx, rs, content.Pos{Level: 1, Index: n}, how)
		return err
	})
	return leaf, err
}

// CID names a chunk; a hole has none. It may fetch parts of the map.
func (m *Image) CID(ctx context.Context, index uint64) (id content.CID, err error) {
	leaf, err := m.leaf(ctx, index/content.MapFanout, m.by(exchange.PriorityPrefetch))
	if leaf != nil {
		id = leaf.Node.Entry(int(index % content.MapFanout))
	}
	return id, err
}

// CIDs yields the names of all chunks and map nodes, and what it could not find out
// as an error, after which it ends.
func (m *Image) CIDs(ctx context.Context) func(yield func(content.CID, error) bool) {
	return func(yield func(content.CID, error) bool) {
		for names, err := range m.f.names(ctx, m.rs.Load(), m.by(exchange.PriorityPrefetch)) {
			if err != nil {
				yield(content.CID{}, err)
				return
			}
			for _, id := range names {
				if !yield(id, nil) {
					return
				}
			}
		}
	}
}

// OriginBack has the reads that wait ask again at once: the origin answers again.
func (f *Fetcher) OriginBack() { f.back.Ring() }

// Waiting says what guests of an image wait for.
type Waiting = patience.Waiting

// Waiting returns the reads of this handle that wait for a source to come back.
func (m *Image) Waiting() Waiting {
	w := m.waits.Now()
	w.Timeout = m.f.cfg.IOTimeout
	return w
}

// Spent returns how long single reads of guests have waited by this handle for what came from each source, in all.
func (m *Image) Spent() map[string]float64 { return m.spent.Now().Seconds() }

// mayCome reports whether what failed so may come right. A climb that was final is
// content.ErrCorrupt or content.ErrNotFound instead.
func mayCome(err error) bool { return errors.Is(err, content.ErrUnavailable) }

// patiently has what a guest waits for tried again while it may come.
func (m *Image) patiently(ctx context.Context, try func(context.Context) error) error {
	return m.why(m.waits.Try(ctx, patience.Limits{
		Back: &m.f.back, Most: m.f.cfg.IOTimeout, Again: plan.Again, MayCome: mayCome, Ended: m.f.ctx,
		Waits: func() (over func()) {
			m.f.tally.Waits.Inc()
			m.f.tally.Waiting.Inc()
			return m.f.tally.Waiting.Dec
		},
	}, try))
}
