package fetch

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch/narrow"
	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

// residentMax bounds the map nodes in memory, of all roots together: each is some
// 50 KiB, and a leaf stands for 128 MiB of disk.
const residentMax = 1024

type mapNode = object.MapNode

// leaf returns the map node that names a chunk, if it is in memory.
func (rs *rootState) leaf(index uint64) *mapNode {
	return rs.nodes.Get(1<<48 | index/content.MapFanout)
}

// pair says where the node at p and its page lie, and their names: from the head,
// or from the parent, which is fetched if need be. ok is false for a hole.
func (f *Fetcher) pair(ctx context.Context, rs *rootState, p content.Pos, how request) (_ pack.Pair, ok bool, err error) {
	if p.Level == rs.shape.Depth() {
		top := rs.head.Top()
		return top, !top.Node.CID.IsHole(), nil
	}
	up, i := p.Parent()
	parent, err := f.node(ctx, rs, up, how)
	if err != nil || parent == nil {
		return pack.Pair{}, false, err
	}
	pair, ok := parent.Page.ChildPair(parent.Node, i)
	return pair, ok, nil
}

// node returns the map node at p: from memory, the cache, or by a flight. nil
// without an error is a hole.
func (f *Fetcher) node(ctx context.Context, rs *rootState, p content.Pos, how request) (*mapNode, error) {
	if n := rs.nodes.Get(object.MapKey(p)); n != nil && n.Reach >= how.reach {
		return n, nil
	}
	pair, ok, err := f.pair(ctx, rs, p, how)
	if err != nil || !ok {
		return nil, err
	}
	return f.nodeAt(ctx, rs, object.Object{Pos: p, Pair: pair}, how)
}

// nodeAt is node where the pair is known.
func (f *Fetcher) nodeAt(ctx context.Context, rs *rootState, o object.Object, how request) (*mapNode, error) {
	if n := rs.nodes.Peek(object.MapKey(o.Pos)); n != nil && n.Reach >= how.reach {
		return n, nil
	}
	if n, err := f.cachedNode(rs, o.Pos, o.Pair, how.reach); err == nil {
		if !how.passing {
			f.nodes.Keep(&rs.nodes, object.MapKey(o.Pos), n)
		}
		return n, nil
	}
	if how.local {
		return nil, content.ErrNotFound
	}
	fl := f.join(rs, []object.Object{object.Node(o.Pos, o.Pair, max(how.reach, rs.reach()))}, how)[0]
	how.trail.Tried(fl.job.trace)
	if _, err := fl.wait(ctx); err != nil {
		return nil, err
	}
	return fl.node, nil
}

// mapAhead is how many leaves of a map are asked for at once when it is read in order:
// the 16,384 of 2 TiB, where each takes 10 ms, in 3 s instead of 160.
const mapAhead = 64

// readMapAhead asks for a row of leaves, when the first of them is due and not here. What fails is left to who reads it.
func (m *Image) readMapAhead(ctx context.Context, n, end uint64) {
	if n%mapAhead == 0 && m.rs.Load().nodes.Peek(object.MapKey(content.Pos{Level: 1, Index: n})) == nil {
		_ = m.readLeaves(ctx, func(yield func(uint64) bool) {
			for end = min(end, n+mapAhead); n < end && yield(n); n++ {
			}
		})
	}
}

// readLeaves asks for leaves side by side, and waits for them. The error says what failed of it.
func (m *Image) readLeaves(ctx context.Context, leaves iter.Seq[uint64]) (failed error) {
	f, rs := m.f, m.rs.Load()
	var due []object.Object
	for n := range leaves {
		p := content.Pos{Level: 1, Index: n}
		pair, ok, err := f.pair(ctx, rs, p, m.by(exchange.PriorityGuest))
		if failed = err; err != nil {
			break
		}
		if ok && rs.nodes.Peek(object.MapKey(p)) == nil && !(f.cfg.Cache.Has(pair.Node.CID) && f.cfg.Cache.Has(pair.Page.CID)) {
			due = append(due, object.Node(p, pair, rs.reach()))
		}
	}
	for _, fl := range f.join(rs, due, m.by(exchange.PriorityReadahead)) {
		_, err := fl.wait(ctx)
		failed = errors.Join(failed, err)
	}
	return failed
}

// cachedNode reads a node and its page from the cache, if both go so far.
func (f *Fetcher) cachedNode(rs *rootState, p content.Pos, pair pack.Pair, reach cache.Reach) (*mapNode, error) {
	goes, _ := f.cfg.Cache.Reach(pair.Node.CID)
	paged, _ := f.cfg.Cache.Reach(pair.Page.CID)
	node, err := f.cfg.Cache.GetFor(pair.Node.CID, reach, nil)
	if err != nil {
		return nil, err
	}
	page, err := f.cfg.Cache.GetFor(pair.Page.CID, reach, nil)
	if err != nil {
		return nil, err
	}
	return f.decodeNode(rs, p, arrival{data: node, page: page, obj: object.Object{Reach: max(reach, min(goes, paged))}})
}

func (f *Fetcher) decodeNode(rs *rootState, p content.Pos, a arrival) (*mapNode, error) {
	n, err := pack.DecodeMapNode(f.codec, rs.head.Scope, p.Level, a.data, a.page)
	if err != nil {
		return nil, fmt.Errorf("%s of root %s: %w", p, rs.id, err)
	}
	rs.proven.Store(true)
	return &mapNode{Node: n.Node, Page: n.Page, ID: a.data.CID(), PageID: a.page.CID(), Reach: a.obj.Reach}, nil
}

// walk visits the nodes of a root's map, those above first, until visit returns
// false. A node that can't be had is visited as an error, and what is below it
// passed over; so is what the map has beyond the root. When ctx ends, that is the
// last visit.
func (f *Fetcher) walk(ctx context.Context, rs *rootState, how request, visit func(content.Pos, *mapNode, error) bool) {
	var down func(content.Pos, pack.Pair) bool
	down = func(p content.Pos, pair pack.Pair) bool {
		if ctx.Err() != nil {
			visit(p, nil, context.Cause(ctx))
			return false
		}
		n, err := f.nodeAt(ctx, rs, object.Object{Pos: p, Pair: pair}, how)
		if !visit(p, n, err) {
			return false
		}
		if err != nil || p.Level == 1 {
			return true
		}
		for i := range n.Node.Entries {
			below := p.Child(i)
			if !rs.shape.Contains(below) {
				break
			}
			if pair, ok := n.Page.ChildPair(n.Node, i); ok && !down(below, pair) {
				return false
			}
		}
		return true
	}
	if top := rs.head.Top(); !top.Node.CID.IsHole() {
		down(content.Pos{Level: rs.shape.Depth()}, top)
	}
}

// names yields what the nodes of a root's map bring, as walk visits them.
func (f *Fetcher) names(ctx context.Context, rs *rootState, how request) narrow.Map {
	return func(yield func([]content.CID, error) bool) {
		f.walk(ctx, rs, how, func(p content.Pos, n *mapNode, err error) bool {
			if err != nil {
				return yield(nil, err)
			}
			return yield(n.Names(p), nil)
		})
	}
}
