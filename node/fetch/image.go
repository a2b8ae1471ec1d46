package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

const (
	// readaheadChunks are asked for behind a chunk that a guest missed: a booting
	// guest goes on there in two of five reads.
	readaheadChunks = 4
	// readaheadMax bounds the readaheads of an image that are under way.
	readaheadMax = 4
	// warmWindow bounds the bytes of a prefetch that are under way: enough for the
	// longest links, little beside a guest's reads.
	warmWindow = 8 << 20
)

// Image is a root that is read: one handle a volume, which counts where its bytes
// came from. Safe for concurrent use.
type Image struct {
	f     *Fetcher
	rs    *rootState
	bytes [sources]atomic.Int64
	ahead atomic.Int32
}

// Open returns a handle on a root that was learned.
func (f *Fetcher) Open(root content.CID) (*Image, error) {
	rs := f.root(root)
	if rs == nil {
		return nil, fmt.Errorf("open root %s: %w", root, content.ErrNotFound)
	}
	return &Image{f: f, rs: rs}, nil
}

// ID returns the root's CID.
func (m *Image) ID() content.CID { return m.rs.id }

// Root describes the image.
func (m *Image) Root() content.Root { return m.rs.head.Root }

// Bytes returns how many bytes were read through this handle, by source.
func (m *Image) Bytes() [sources]int64 {
	var out [sources]int64
	for s := range out {
		out[s] = m.bytes[s].Load()
	}
	return out
}

// TryReadChunk fills p from byte off of a chunk if it is a hole or in the cache;
// it neither waits nor allocates. false means to use ReadChunk.
func (m *Image) TryReadChunk(index uint64, off int, p []byte) bool {
	leaf := m.rs.leaf(index)
	if leaf == nil {
		return false
	}
	id := leaf.Node.Entry(int(index % content.MapFanout))
	if id.IsHole() {
		clear(p)
		return true
	}
	if m.f.cfg.Cache.ReadAt(id, p, off) != nil {
		return false
	}
	m.bytes[FromCache].Add(int64(len(p)))
	m.f.bytes[FromCache].Add(int64(len(p)))
	return true
}

// leaf returns the map node that names a chunk, if it is in memory.
func (rs *rootState) leaf(index uint64) *pack.MapNode {
	if n := index / content.MapFanout; n < uint64(len(rs.leaves)) {
		return rs.leaves[n].Load()
	}
	return nil
}

// ReadChunk fills p from byte off of a chunk, for a guest that waits for it, and
// asks for what the guest will probably read next.
func (m *Image) ReadChunk(ctx context.Context, index uint64, off int, p []byte) error {
	if m.TryReadChunk(index, off, p) {
		return nil
	}
	how := request{priority: exchange.PriorityGuest}
	o, ok, err := m.f.chunk(ctx, m.rs, index, how)
	if err != nil {
		return err
	}
	if !ok {
		clear(p)
		return nil
	}
	if m.f.cfg.Cache.ReadAt(o.id, p, off) == nil {
		m.bytes[FromCache].Add(int64(len(p)))
		m.f.count(FromCache, len(p))
		return nil
	}
	fl := m.f.join(m.rs, []object{o}, how)[0]
	m.readahead(index + 1)
	v, err := fl.wait(ctx)
	if err != nil {
		return err
	}
	if off < 0 || off+len(p) > len(v.Bytes()) {
		return fmt.Errorf("chunk %d of root %s: %w: it has %d bytes", index, m.rs.id, content.ErrCorrupt, len(v.Bytes()))
	}
	m.bytes[fl.source].Add(int64(len(v.Bytes())))
	copy(p, v.Bytes()[off:])
	return nil
}

// readahead asks for the chunks from index on that are in the same map node.
func (m *Image) readahead(index uint64) {
	leaf := m.rs.leaf(index)
	if leaf == nil || m.ahead.Load() >= readaheadMax {
		return
	}
	var objects []object
	for i := index; i < index+readaheadChunks && i/content.MapFanout == index/content.MapFanout; i++ {
		e := int(i % content.MapFanout)
		id := leaf.Node.Entry(e)
		at, ok := leaf.Page.Child(e)
		if ok && !id.IsHole() && !m.f.cfg.Cache.Has(id) {
			objects = append(objects, object{pos: content.Chunk(i), id: id, at: at})
		}
	}
	if len(objects) == 0 {
		return
	}
	m.ahead.Add(1)
	flights := m.f.join(m.rs, objects, request{priority: exchange.PriorityReadahead})
	go func() {
		defer m.ahead.Add(-1)
		for _, fl := range flights {
			fl.wait(m.f.ctx)
		}
	}()
}

// NextData returns the first run of chunks from index on that are not holes;
// io.EOF when there is none. It may fetch parts of the map.
func (m *Image) NextData(ctx context.Context, index uint64) (start, end uint64, err error) {
	how := request{priority: exchange.PriorityGuest}
	chunks := m.Root().Chunks()
	for index < chunks {
		n := index / content.MapFanout
		leaf, err := m.f.node(ctx, m.rs, content.Pos{Level: 1, Index: n}, how)
		if err != nil {
			return 0, 0, err
		}
		limit := min((n+1)*content.MapFanout, chunks)
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

// CIDs yields the names of all chunks and map nodes, in order, and what it could
// not find out as an error, after which it ends.
func (m *Image) CIDs(ctx context.Context) func(yield func(content.CID, error) bool) {
	return func(yield func(content.CID, error) bool) {
		how := request{priority: exchange.PriorityPrefetch}
		for level := m.rs.depth; level > 0; level-- {
			span := uint64(1)
			for range level {
				span *= content.MapFanout
			}
			for i := range (m.Root().Chunks() + span - 1) / span {
				n, err := m.f.node(ctx, m.rs, content.Pos{Level: level, Index: i}, how)
				if err != nil {
					yield(content.CID{}, err)
					return
				}
				if n == nil {
					continue
				}
				ids := []content.CID{n.NodeBytes.CID(), n.PageBytes.CID()}
				if level == 1 {
					ids = append(ids, n.Node.Entries...)
				}
				for _, id := range ids {
					if !id.IsHole() && !yield(id, nil) {
						return
					}
				}
			}
		}
	}
}

// Warm brings the whole image into the cache. The runs that this node leads come
// first, so that the members of a farm that warm one image at once each bring in
// their own part. Progress is given bytes by source; it may be nil.
func (m *Image) Warm(ctx context.Context, progress func(source Source, n int)) error {
	if progress == nil {
		progress = func(Source, int) {}
	}
	how := request{priority: exchange.PriorityPrefetch}
	m.f.Prepare(ctx, m.rs.id)
	window := semaphore.NewWeighted(warmWindow)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards first and the calls of progress
	var first error
	size := int64(m.Root().ChunkSize)
	land := func(flights []*flight) {
		defer wg.Done()
		for _, fl := range flights {
			v, err := fl.wait(ctx)
			mu.Lock()
			first = errors.Join(first, err)
			if err == nil {
				m.bytes[fl.source].Add(int64(len(v.Bytes())))
				progress(fl.source, len(v.Bytes()))
			}
			mu.Unlock()
			window.Release(size)
		}
	}
	failed := func() bool { mu.Lock(); defer mu.Unlock(); return first != nil }
	for n := range uint64(len(m.rs.leaves)) {
		runs, here, err := m.missing(ctx, n, how)
		if err != nil {
			wg.Wait()
			return err
		}
		mu.Lock()
		progress(FromCache, here*int(size))
		mu.Unlock()
		for _, objects := range runs {
			for part := range slices.Chunk(objects, warmWindow/int(size)) {
				if err := window.Acquire(ctx, int64(len(part))*size); err != nil || failed() {
					wg.Wait()
					return errors.Join(err, first)
				}
				wg.Add(1)
				go land(m.f.join(m.rs, part, how))
			}
		}
	}
	wg.Wait()
	return first
}

// missing returns what the cache lacks of the chunks that a leaf names, by run,
// the runs that this node leads first, and how many chunks are here.
func (m *Image) missing(ctx context.Context, leaf uint64, how request) (runs [][]object, here int, err error) {
	n, err := m.f.node(ctx, m.rs, content.Pos{Level: 1, Index: leaf}, how)
	if err != nil || n == nil {
		return nil, 0, err
	}
	byRun := map[pack.Run]int{}
	for i, id := range n.Node.Entries {
		if id.IsHole() {
			continue
		}
		if m.f.cfg.Cache.Has(id) {
			here++
			continue
		}
		at, ok := n.Page.Child(i)
		if !ok {
			return nil, 0, fmt.Errorf("chunk %d of root %s: %w: its page does not locate it", leaf*content.MapFanout+uint64(i), m.rs.id, content.ErrCorrupt)
		}
		o := object{pos: content.Chunk(leaf*content.MapFanout + uint64(i)), id: id, at: at}
		k, ok := byRun[at.Run()]
		if !ok {
			k = len(runs)
			byRun[at.Run()] = k
			runs = append(runs, nil)
		}
		runs[k] = append(runs[k], o)
	}
	var farm []plan.Peer
	for _, id := range m.f.cfg.Members.Live() {
		farm = append(farm, plan.Peer(id))
	}
	self := plan.Peer(m.f.cfg.Self)
	leads := func(objects []object) bool {
		ranked := plan.Rank(runKey(objects[0].at.Run()), farm)
		return len(ranked) > 0 && ranked[0] == self
	}
	slices.SortStableFunc(runs, func(a, b []object) int {
		switch la, lb := leads(a), leads(b); {
		case la && !lb:
			return -1
		case lb && !la:
			return 1
		}
		return 0
	})
	return runs, here, nil
}

// runKey is what a run's lead is chosen by.
func runKey(r pack.Run) string { return fmt.Sprintf("%s/%d", r.Pack, r.N) }
