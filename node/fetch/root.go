package fetch

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/shown"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

// Root is what a record says of content: checked by its reader.
type Root struct {
	Head pack.Head
	// Lineage are the roots before it, the nearest first; who holds one of them may
	// hold chunks.
	Lineage []content.CID
	// Envelope is the sealed record, for members that have not met the root.
	Envelope []byte
}

const (
	// rootsMax bounds the roots that a node knows; beyond it those that nobody asked
	// for for longest are forgotten, one part in rootsForgotten: each import and
	// each fold of a volume makes another root.
	rootsMax       = 100_000
	rootsForgotten = 16
)

// rootState is what this node knows of a root.
type rootState struct {
	id      content.CID
	head    pack.Head
	depth   int
	lineage []content.CID
	peers   *shown.Peers

	// leaves are the level-1 nodes that were met, read without a lock. One may
	// vanish at any time, to be loaded again.
	leaves []atomic.Pointer[mapNode]

	used     time.Time  // the last time; guarded by the Fetcher's mu
	scanning sync.Mutex // held while the cache is looked through; before mu

	mu       sync.Mutex // guards what follows
	envelope []byte
	upper    map[content.Pos]*mapNode // those above
	have     have
	mapping  bool // the map is or was brought in for the bitmap
}

// sealed returns the record of the root, if there is one.
func (rs *rootState) sealed() []byte {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.envelope
}

// Learn makes a root known, so that it can be read here and asked for by others.
// It returns the root's CID. A record of a wider scope replaces one of a narrower:
// the caller answers for it that its signer may open the root that far.
func (f *Fetcher) Learn(r Root) (content.CID, error) { return f.learn(r, true) }

func (f *Fetcher) learn(r Root, mayWiden bool) (content.CID, error) {
	root, err := r.Head.Root.Encode(f.codec)
	if err != nil {
		return content.CID{}, fmt.Errorf("learn root: %w", err)
	}
	id := root.CID()
	rs := f.enter(id, r, mayWiden)
	if len(r.Envelope) == 0 || rs.head.Scope != r.Head.Scope {
		return id, nil
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.envelope = r.Envelope
	return id, nil
}

// enter returns the state of a root, a new one where that is needed.
func (f *Fetcher) enter(id content.CID, r Root, mayWiden bool) *rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.roots[id]
	if known != nil && (!mayWiden || known.head.Scope == r.Head.Scope || !r.Head.Scope.Covers(known.head.Scope)) {
		return known
	}
	if known == nil && len(f.roots) >= rootsMax {
		f.forgetRoots()
	}
	leaves := (r.Head.Root.Chunks() + content.MapFanout - 1) / content.MapFanout
	f.roots[id] = &rootState{
		id: id, head: r.Head, depth: r.Head.Root.Depth(), used: f.cfg.Now(), lineage: r.Lineage[:min(len(r.Lineage), content.LineageMax)],
		leaves: make([]atomic.Pointer[mapNode], leaves), upper: map[content.Pos]*mapNode{},
	}
	f.roots[id].peers = f.peersOf(f.roots[id])
	return f.roots[id]
}

// forgetRoots makes room for others. Who has one open reads on; who asks for one
// introduces it again. Called with mu.
func (f *Fetcher) forgetRoots() {
	all := slices.SortedFunc(maps.Values(f.roots), func(a, b *rootState) int { return a.used.Compare(b.used) })
	for _, rs := range all[:max(1, len(all)/rootsForgotten)] {
		delete(f.roots, rs.id)
	}
}

// root returns what is known of a root that is asked for, or nil.
func (f *Fetcher) root(id content.CID) *rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	rs := f.roots[id]
	if rs != nil {
		rs.used = f.cfg.Now()
	}
	return rs
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

// byGuest is the request of a guest of this node that waits.
func byGuest() request { return request{priority: exchange.PriorityGuest} }

// byReadahead is for what a guest will probably want next.
func byReadahead() request { return request{priority: exchange.PriorityReadahead} }

// byPrefetch is for what nobody waits for.
func byPrefetch() request { return request{priority: exchange.PriorityPrefetch} }

// object is one thing to fetch: where it stands under the root, its name, and
// where it lies at the origin. A map node brings its page.
type object struct {
	pos  content.Pos
	id   content.CID
	page content.CID
	at   pack.Location
	pair pack.Pair
}

// objectKey names an object: a map node with another page is another.
type objectKey struct {
	id, page content.CID
	level    int
}

func (o object) key() objectKey { return objectKey{o.id, o.page, o.pos.Level} }

// frames are what is read for it at the origin.
func (o object) frames() []pack.Extent {
	if o.pos.Level > 0 {
		return []pack.Extent{o.pair.Node, o.pair.Page}
	}
	return []pack.Extent{{CID: o.id, Location: o.at}}
}

// stored is how many bytes that is.
func (o object) stored() (n int) {
	for _, e := range o.frames() {
		n += int(e.Length)
	}
	return n
}

// nodeObject is the object of a map node.
func nodeObject(p content.Pos, pair pack.Pair) object {
	return object{pos: p, id: pair.Node.CID, page: pair.Page.CID, at: pair.Node.Location, pair: pair}
}

// chunk returns the object at index; ok is false for a hole.
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
