package fetch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

// Root is what a record says of content: checked by its reader.
type Root struct {
	Head pack.Head
	// Lineage are the roots before it; who holds one of them may hold chunks.
	Lineage []content.CID
	// Envelope is the sealed record, for members that have not met the root.
	Envelope []byte
}

const (
	// rootsMax bounds the roots that a node knows.
	rootsMax = 100_000
	// nodesMax bounds the map nodes in memory: each is some 50 KiB, and stands for
	// 128 MiB of disk.
	nodesMax = 1024
)

// rootState is what this node knows of a root.
type rootState struct {
	id    content.CID
	head  pack.Head
	depth int
	peers *peers

	// leaves are the level-1 nodes that were met, read without a lock; upper are
	// those above. A leaf may vanish at any time, to be loaded again.
	leaves []atomic.Pointer[pack.MapNode]

	mu       sync.Mutex // guards what follows
	envelope []byte
	lineage  []content.CID
	upper    map[content.Pos]*pack.MapNode
	loaded   []uint64 // leaves in memory, in the order in which they came
	have     have
}

// Learn makes a root known, so that it can be read here and asked for by others.
// It returns the root's CID.
func (f *Fetcher) Learn(r Root) (content.CID, error) {
	root, err := r.Head.Root.Encode(f.codec)
	if err != nil {
		return content.CID{}, fmt.Errorf("learn root: %w", err)
	}
	id := root.CID()
	f.mu.Lock()
	defer f.mu.Unlock()
	if rs := f.roots[id]; rs != nil {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		if len(r.Envelope) > 0 {
			rs.envelope = r.Envelope
		}
		return id, nil
	}
	if len(f.roots) >= rootsMax {
		return id, fmt.Errorf("learn root %s: %w: %d roots are known", id, content.ErrNoSpace, len(f.roots))
	}
	leaves := (r.Head.Root.Chunks() + content.MapFanout - 1) / content.MapFanout
	f.roots[id] = &rootState{
		id: id, head: r.Head, depth: r.Head.Root.Depth(), envelope: r.Envelope, lineage: r.Lineage,
		leaves: make([]atomic.Pointer[pack.MapNode], leaves), upper: map[content.Pos]*pack.MapNode{}, peers: newPeers(f),
	}
	return id, nil
}

func (f *Fetcher) root(id content.CID) *rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.roots[id]
}

// memory returns a map node that is in memory.
func (rs *rootState) memory(p content.Pos) *pack.MapNode {
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

// keepNode puts a node into memory; the leaf that came first goes when there are
// too many.
func (rs *rootState) keepNode(p content.Pos, n *pack.MapNode) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if p.Level > 1 {
		rs.upper[p] = n
		return
	}
	if rs.leaves[p.Index].Swap(n) == nil {
		rs.loaded = append(rs.loaded, p.Index)
	}
	for len(rs.loaded) > nodesMax {
		rs.leaves[rs.loaded[0]].Store(nil)
		rs.loaded = rs.loaded[1:]
	}
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
	id := parent.Node.Entry(i)
	if id.IsHole() {
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
func (f *Fetcher) node(ctx context.Context, rs *rootState, p content.Pos, how request) (*pack.MapNode, error) {
	if n := rs.memory(p); n != nil {
		return n, nil
	}
	pair, ok, err := f.pair(ctx, rs, p, how)
	if err != nil || !ok {
		return nil, err
	}
	if n, err := f.cachedNode(rs, p, pair); err == nil {
		return n, nil
	}
	if how.local {
		return nil, content.ErrNotFound
	}
	fl := f.join(rs, []object{{pos: p, id: pair.Node.CID, page: pair.Page.CID, at: pair.Node.Location, pair: pair}}, how)[0]
	if _, err := fl.wait(ctx); err != nil {
		return nil, err
	}
	return fl.node, nil
}

// cachedNode reads a node and its page from the cache.
func (f *Fetcher) cachedNode(rs *rootState, p content.Pos, pair pack.Pair) (*pack.MapNode, error) {
	node, err := f.cfg.Cache.Get(pair.Node.CID, nil)
	if err != nil {
		return nil, err
	}
	page, err := f.cfg.Cache.Get(pair.Page.CID, nil)
	if err != nil {
		return nil, err
	}
	return f.admitNode(rs, p, node, page)
}

// admitNode decodes a checked node and its page, and keeps them.
func (f *Fetcher) admitNode(rs *rootState, p content.Pos, node, page content.Verified) (*pack.MapNode, error) {
	n, err := pack.DecodeMapNode(f.codec, rs.head.Scope, p.Level, node, page)
	if err != nil {
		return nil, fmt.Errorf("%s of root %s: %w", p, rs.id, err)
	}
	rs.keepNode(p, &n)
	return &n, nil
}

// request says for whom something is fetched.
type request struct {
	priority exchange.Priority
	depth    plan.Depth
	// from is the member that asked, and fromFarm its farm, where one did.
	from     plan.Peer
	fromFarm string
	// local looks no farther than this node.
	local bool
}

// guest reports whether a guest of this node waits for it.
func (r request) guest() bool { return r.depth == plan.Own && r.priority == exchange.PriorityGuest }

// object is one thing to fetch: where it stands under the root, its name, and
// where it lies at the origin. A map node brings its page.
type object struct {
	pos  content.Pos
	id   content.CID
	page content.CID
	at   pack.Location
	pair pack.Pair
}

// object returns the chunk at index; ok is false for a hole.
func (f *Fetcher) chunk(ctx context.Context, rs *rootState, index uint64, how request) (object, bool, error) {
	p := content.Chunk(index)
	if !rs.head.Root.Contains(p) {
		return object{}, false, fmt.Errorf("%s of root %s: %w: it has %d chunks", p, rs.id, content.ErrInvalid, rs.head.Root.Chunks())
	}
	up, i := p.Parent()
	leaf, err := f.node(ctx, rs, up, how)
	if err != nil || leaf == nil {
		return object{}, false, err
	}
	id := leaf.Node.Entry(i)
	if id.IsHole() {
		return object{}, false, nil
	}
	at, ok := leaf.Page.Child(i)
	if !ok {
		return object{}, false, fmt.Errorf("%s of root %s: %w: its page does not locate it", p, rs.id, content.ErrCorrupt)
	}
	return object{pos: p, id: id, at: at}, true, nil
}

var errStopped = errors.New("the node is stopping")
