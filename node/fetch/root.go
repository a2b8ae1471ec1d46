package fetch

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch/have"
	"github.com/grangemesh/grange/node/fetch/narrow"
	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/resident"
	"github.com/grangemesh/grange/node/fetch/roots"
	"github.com/grangemesh/grange/node/fetch/shown"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/spans"
	"github.com/grangemesh/grange/node/why"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

// rootState is what this node knows of a root by one head. The CID of a root covers
// neither scope nor pages: another record may name the same root and say otherwise of
// them, which then harms only those who read by that record.
type rootState struct {
	id      content.CID
	head    pack.Head
	shape   content.Shape
	lineage []content.CID
	peers   *shown.Peers

	// limit is how far goes what is obtained under this root: by its scope, and less
	// once its record has ended.
	limit atomic.Uint32
	// nodes of the map that are in memory. One may vanish at any time, to be loaded
	// again.
	nodes  resident.Table[mapNode]
	proven atomic.Bool // a node of the map was decoded: the head's first page is right
	tally  *tally.Tally
	bytes  atomic.Pointer[tally.Counters] // of the root; nil until something was counted
	here   have.Set                       // chunks that may go as far as the root
	near   have.Set                       // those that members of this farm show

	introducer peer.ID    // who handed the record over; "" where this node looked it up
	scanning   sync.Mutex // held while the cache is looked through; before mu

	mu       sync.Mutex // guards what follows
	envelope []byte
	scanned  time.Time  // the last time
	evicted  uint64     // what the cache had evicted then
	mapping  bool       // the map is or was brought in for the bitmap
	toldTo   roots.Told // whom the record was shown to lately, the latest last

	toldBy roots.Told // whom it was had from lately; guarded by the Fetcher's mu
}

// tellOnce returns the record for a member that was not shown it yet, or nil.
func (rs *rootState) tellOnce(id peer.ID) []byte {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.toldTo.Add(id) {
		return nil
	}
	return rs.envelope
}

func (rs *rootState) Name() roots.Name {
	return roots.Name{ID: rs.id, Head: rs.head, Introducer: rs.introducer}
}

// count counts bytes of the root, by whatever head.
func (rs *rootState) count(s Source, n int) {
	c := rs.bytes.Load()
	if c == nil {
		c = rs.tally.Root(rs.id)
		rs.bytes.Store(c)
	}
	c[s].Add(int64(n))
}

func (rs *rootState) reach() cache.Reach { return cache.Reach(rs.limit.Load()) }

// sealed returns the record of the root, if there is one.
func (rs *rootState) sealed() []byte {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.envelope
}

func (rs *rootState) seal(envelope []byte) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if len(envelope) > 0 {
		rs.envelope = envelope
	}
}

func (f *Fetcher) newRoot(r Root, reach cache.Reach) (*rootState, error) {
	root, err := r.Head.Root.Encode(f.codec)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	rs := &rootState{
		id: root.CID(), tally: f.tally, head: r.Head, shape: r.Head.Root.Shape(),
		lineage: r.Lineage[:min(len(r.Lineage), content.LineageMax)], envelope: r.Envelope,
	}
	rs.peers = f.shown.Peers(shown.Root{ID: rs.id, Scope: rs.head.Scope, Chunks: rs.shape.Chunks, Lineage: rs.lineage, Record: rs.sealed, Near: rs.near.Join})
	rs.limit.Store(uint32(reach))
	return rs, nil
}

// Learn makes known a root whose record this node has looked up, so that others may
// ask for it as far as its scope says, and returns a handle that reads by this very
// record. The caller answers for it that the signer may say what the head says. A
// root that a member introduced with the same scope is forgotten for it.
func (f *Fetcher) Learn(r Root) (*Image, error) {
	rs, err := f.newRoot(r, cache.ReachOf(r.Head.Scope, f.cfg.Identity))
	if err != nil {
		return nil, fmt.Errorf("learn %w", err)
	}
	f.mu.Lock()
	before := slices.Collect(f.roots.Of(rs.id))
	rs = f.roots.Learn(rs, f.cfg.Now())
	f.mu.Unlock()
	for _, was := range before {
		if was.introducer != "" { // it may be known no more, and who follows it goes over to this one
			was.here.Tell()
		}
	}
	rs.seal(r.Envelope)
	return f.image(rs, r.As), nil
}

// PublicRoot returns a root that this node has looked up as one that anyone may read.
func (f *Fetcher) PublicRoot(id content.CID) (content.Verified, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for rs := range f.roots.Of(id) {
		if rs.introducer == "" && rs.reach() == cache.ReachPublic {
			v, err := rs.head.Root.Encode(f.codec)
			return v, err == nil
		}
	}
	return content.Verified{}, false
}

// Open returns a handle on a root for use on this node: as it was learned, or else, if
// its record may have ended, one that makes the root known to nobody.
func (f *Fetcher) Open(r Root) (*Image, error) {
	rs, err := f.newRoot(r, f.unlisted(r.Head.Scope))
	if err != nil {
		return nil, fmt.Errorf("open %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if known, ok := f.roots.Learned(rs.id, rs.head); ok {
		rs = known
	}
	return f.image(rs, r.As), nil
}

// unlisted is how far goes what is read under a root that this node does not serve:
// the members of its farm may read what it may.
func (f *Fetcher) unlisted(s content.Scope) cache.Reach {
	return min(cache.ReachOf(s, f.cfg.Identity), cache.ReachFarm)
}

// Introduce takes the record of a root that a member is going to ask for. What this
// node has looked up counts for more; and what members introduce is bounded for each.
func (f *Fetcher) Introduce(_ context.Context, from exchange.Peer, envelope []byte) error {
	if f.cfg.Introduce == nil || !from.Identity.Role.IsMember() {
		return fmt.Errorf("introduce: %w", content.ErrForbidden)
	}
	r, err := f.cfg.Introduce(envelope)
	if err != nil {
		return err
	}
	reach := cache.ReachOf(r.Head.Scope, f.cfg.Identity)
	if reach == cache.ReachNone || !from.Identity.MayRead(r.Head.Scope) {
		return fmt.Errorf("introduce: %w", content.ErrForbidden)
	}
	rs, err := f.newRoot(r, reach)
	if err != nil {
		return fmt.Errorf("introduce %w", err)
	}
	rs.introducer = from.ID
	f.mu.Lock()
	defer f.mu.Unlock()
	rs = f.roots.Introduce(rs, f.cfg.Now())
	rs.toldBy.Add(from.ID)
	return nil
}

// served returns the state of a root for a member that asks for it, and how far what
// it is answered from must go; nil when the root is unknown, or not for the asker.
func (f *Fetcher) served(id content.CID, from exchange.Peer) (*rootState, cache.Reach) {
	rs := f.best(id, from.ID, func(rs *rootState) bool { return from.Identity.MayRead(rs.head.Scope) })
	if rs == nil {
		return nil, cache.ReachNone
	}
	reach := rs.reach()
	if reach == cache.ReachNone || reach != cache.ReachOf(rs.head.Scope, f.cfg.Identity) { // its record has ended meanwhile
		return nil, cache.ReachNone
	}
	return rs, reach
}

// best returns the state by which a root is read, of those that may: one whose record
// the asker itself has shown, as what is false in that harms nobody else; then one that
// was looked up before one that was introduced, one whose head has proved right before
// others, and then the widest.
func (f *Fetcher) best(id content.CID, asker peer.ID, may func(*rootState) bool) *rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	rs, _ := f.roots.Best(id, f.cfg.Now(), func(rs *rootState) int {
		if !may(rs) {
			return -1
		}
		rank := int(rs.reach())
		for i, holds := range []bool{rs.proven.Load(), rs.introducer == "", slices.Contains(rs.toldBy, asker)} {
			if holds {
				rank += (int(cache.ReachPublic) + 1) << i
			}
		}
		return rank
	})
	return rs
}

// heads returns what is known of a root, by each of its heads that others may still ask by.
func (f *Fetcher) heads(id content.CID) []*rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(f.roots.Of(id))
}

// all returns the roots that others may ask for.
func (f *Fetcher) all() []*rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(f.roots.All())
}

// request says for whom something is fetched.
type request struct {
	priority exchange.Priority
	depth    plan.Depth
	// from is the member that asked, and fromFarm its farm, where one did; reach is
	// how far what it is answered from must go, and none for this node's own guests.
	from     plan.Peer
	fromFarm string
	reach    cache.Reach
	noOrigin bool // nobody is to read the origin for it
	// local looks no farther than this node, and passing keeps nothing in memory.
	local, passing bool
	trail          *why.Trail   // of a guest's read
	span           *spans.Span  // what it is done for, where that is traced
	ask            plan.Peer    // of another farm, first
	looks          bool         // at the bytes, which stay then, without being a guest's or another member's
	list           *object.Part // of which it is: nothing is read at the origin beside it but what that says, and this node leads
}

// byWalk is for a look at what is here and goes so far.
func byWalk(reach cache.Reach) request { return request{reach: reach, local: true, passing: true} }

// chunk returns the object at index; ok is false for a hole.
func (f *Fetcher) chunk(ctx context.Context, rs *rootState, index uint64, how request) (object.Object, bool, error) {
	p := content.Chunk(index)
	if !rs.shape.Contains(p) {
		return object.Object{}, false, fmt.Errorf("%s of root %s: %w: it has %d chunks", p, rs.id, content.ErrInvalid, rs.shape.Chunks)
	}
	up, _ := p.Parent()
	leaf, err := f.node(ctx, rs, up, how)
	if err != nil || leaf == nil {
		return object.Object{}, false, err
	}
	o, ok := leaf.Chunk(index, max(how.reach, rs.reach()))
	return o, ok, nil
}

// Forget ends what this node knows of a root under a scope. It is called when no
// record that the caller knows names the root with that scope any more: the last was
// deleted, or has another version. What replaces it is learned before.
//
// From its return on the root is not served, shown or announced; who has it open
// reads on, for this node and its farm. Then, while the Fetcher runs, what its map
// names goes only as far as the widest root that was learned and names it too, and
// nowhere when none does, as far as the maps of those are here. After a root of a
// farm's scope nothing is narrowed: its members might read it and still may. A process
// that is killed meanwhile leaves the rest as it was.
func (f *Fetcher) Forget(root content.CID, scope content.Scope) {
	f.mu.Lock()
	ended := f.roots.End(root, scope)
	f.mu.Unlock()
	for _, rs := range ended {
		wide := rs.reach() > cache.ReachFarm
		rs.limit.Store(uint32(f.unlisted(scope)))
		rs.here.Tell() // who follows it hears that it has ended
		if wide {
			f.start(func() { f.narrow(rs) })
		}
	}
	f.announceSoon()
}

// narrow takes back what a root that has ended gave its objects. When the Fetcher
// stops it gets done at once, without looking who else names them.
func (f *Fetcher) narrow(rs *rootState) {
	f.narrowing.Lock() // one at a time: what they look through is the same
	defer f.narrowing.Unlock()
	how := request{priority: exchange.PriorityPrefetch, passing: true}
	whole, err := narrow.To(f.cfg.Cache, f.names(context.WithoutCancel(f.ctx), rs, how), func(reach cache.Reach) iter.Seq[narrow.Map] {
		return func(yield func(narrow.Map) bool) {
			for _, other := range f.all() {
				how := byWalk(cache.ReachNone)
				if slices.Contains(other.lineage, rs.id) { // what came after it shares most
					how = request{priority: exchange.PriorityPrefetch, passing: true}
				}
				if other.introducer == "" && other.reach() == reach && !yield(f.names(f.ctx, other, how)) {
					return
				}
			}
		}
	})
	if err != nil {
		f.cfg.Log.Warn("a root that has ended is not forgotten in full", "root", rs.id, "err", err)
	}
	if !whole {
		f.cfg.Log.Warn("part of the map of a root that has ended can't be had; chunks below it that are here may go as far as before", "root", rs.id)
	}
}
