package fetch

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// residentMax bounds the leaves in memory, of all roots together: each is some
// 50 KiB, and stands for 128 MiB of disk.
const residentMax = 1024

// mapNode is a decoded map node with its locator page, and their names.
type mapNode struct {
	Node     content.Node
	Page     *pack.Page
	id, page content.CID
	used     atomic.Bool // since the clock's hand passed
}

// touch notes a use. It writes seldom, so that readers share the line.
func (n *mapNode) touch() {
	if !n.used.Load() {
		n.used.Store(true)
	}
}

// resident is the leaves in memory, as a clock: one that was used since the hand
// passed gets another round.
type resident struct {
	mu    sync.Mutex // guards what follows
	clock []place
	hand  int
}

// place is where a leaf is kept.
type place struct {
	slot *atomic.Pointer[mapNode]
	node *mapNode
}

// keep puts a leaf into its slot; another one may leave its own.
func (r *resident) keep(slot *atomic.Pointer[mapNode], n *mapNode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slot.CompareAndSwap(nil, n) {
		return
	}
	if len(r.clock) < residentMax {
		r.clock = append(r.clock, place{slot, n})
		return
	}
	for r.clock[r.hand].node.used.Swap(false) {
		r.hand = (r.hand + 1) % residentMax
	}
	r.clock[r.hand].slot.Store(nil)
	r.clock[r.hand] = place{slot, n}
	r.hand = (r.hand + 1) % residentMax
}

// memory returns a map node that is in memory.
func (rs *rootState) memory(p content.Pos) *mapNode {
	if p.Level == 1 {
		if p.Index < uint64(len(rs.leaves)) {
			return rs.leaves[p.Index].Load()
		}
		return nil
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.upper[p]
}

// leaf returns the map node that names a chunk, if it is in memory.
func (rs *rootState) leaf(index uint64) *mapNode {
	if n := index / content.MapFanout; n < uint64(len(rs.leaves)) {
		return rs.leaves[n].Load()
	}
	return nil
}

// keepNode puts a node into memory.
func (f *Fetcher) keepNode(rs *rootState, p content.Pos, n *mapNode) {
	if p.Level == 1 {
		f.leaves.keep(&rs.leaves[p.Index], n)
		return
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.upper[p] = n
}

// pair says where the node at p and its page lie, and their names: from the head,
// or from the parent, which is fetched if need be. ok is false for a hole.
func (f *Fetcher) pair(ctx context.Context, rs *rootState, p content.Pos, how request) (_ pack.Pair, ok bool, err error) {
	if p.Level == rs.depth {
		top := rs.head.Top()
		return top, !top.Node.CID.IsHole(), nil
	}
	up, i := p.Parent()
	parent, err := f.node(ctx, rs, up, how)
	if err != nil || parent == nil {
		return pack.Pair{}, false, err
	}
	if parent.Node.Entry(i).IsHole() {
		return pack.Pair{}, false, nil
	}
	pair, ok := parent.Page.ChildPair(parent.Node, i)
	if !ok {
		return pack.Pair{}, false, fmt.Errorf("%s of root %s: %w: its parent does not locate it", p, rs.id, content.ErrCorrupt)
	}
	return pair, true, nil
}

// node returns the map node at p: from memory, the cache, or by a flight. nil
// without an error is a hole.
func (f *Fetcher) node(ctx context.Context, rs *rootState, p content.Pos, how request) (*mapNode, error) {
	if n := rs.memory(p); n != nil {
		n.touch()
		return n, nil
	}
	pair, ok, err := f.pair(ctx, rs, p, how)
	if err != nil || !ok {
		return nil, err
	}
	if n, err := f.cachedNode(rs, p, pair); err == nil {
		f.keepNode(rs, p, n)
		return n, nil
	}
	if how.local {
		return nil, content.ErrNotFound
	}
	fl := f.join(rs, []object{nodeObject(p, pair)}, how)[0]
	if _, err := fl.wait(ctx); err != nil {
		return nil, err
	}
	return fl.node, nil
}

// localNode is node for a walk over what is here: it does not push others out of
// memory.
func (f *Fetcher) localNode(ctx context.Context, rs *rootState, p content.Pos) (*mapNode, error) {
	if n := rs.memory(p); n != nil {
		return n, nil
	}
	pair, ok, err := f.pair(ctx, rs, p, request{local: true})
	if err != nil || !ok {
		return nil, err
	}
	return f.cachedNode(rs, p, pair)
}

// cachedNode reads a node and its page from the cache.
func (f *Fetcher) cachedNode(rs *rootState, p content.Pos, pair pack.Pair) (*mapNode, error) {
	node, err := f.cfg.Cache.Get(pair.Node.CID, nil)
	if err != nil {
		return nil, err
	}
	page, err := f.cfg.Cache.Get(pair.Page.CID, nil)
	if err != nil {
		return nil, err
	}
	return f.decodeNode(rs, p, node, page)
}

// decodeNode decodes a checked node and its page.
func (f *Fetcher) decodeNode(rs *rootState, p content.Pos, node, page content.Verified) (*mapNode, error) {
	n, err := pack.DecodeMapNode(f.codec, rs.head.Scope, p.Level, node, page)
	if err != nil {
		return nil, fmt.Errorf("%s of root %s: %w", p, rs.id, err)
	}
	return &mapNode{Node: n.Node, Page: n.Page, id: node.CID(), page: page.CID()}, nil
}
