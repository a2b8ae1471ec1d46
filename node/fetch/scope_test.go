package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// forge is a record of an image with another head.
func (w *world) forge(im *image, change func(*pack.Head)) *image {
	w.t.Helper()
	out := &image{Root: fetch.Root{Head: im.Head}}
	change(&out.Head)
	root, err := out.Head.Root.Encode(content.NewCodec())
	w.check(err)
	out.id = root.CID()
	out.Envelope, err = content.NewCodec().Marshal(record{Head: out.Head})
	w.check(err)
	return out
}

// taken is what a member got of another, by the CIDs of objects and of pages.
type taken map[content.CID]bool

// take introduces a root to a member and asks it for objects, also to bring them in.
func (m *node) take(from *node, im *image, level int, indexes ...uint64) taken {
	m.w.t.Helper()
	_ = m.exchange.Introduce(m.w.t.Context(), from.id, im.Envelope) // it may be refused
	out := taken{}
	for _, bring := range []bool{false, true} {
		req := exchange.Request{Root: im.id, Level: level, Indexes: indexes, Fetch: bring}
		m.w.check(m.exchange.Want(m.w.t.Context(), from.id, req, func(r exchange.Reply) {
			if d, ok := r.(*exchange.Data); ok {
				out[content.Seal(bytes.Clone(d.Body)).CID()] = true
				out[content.Seal(bytes.Clone(d.Page)).CID()] = true
			}
		}))
	}
	return out
}

// shows returns how many chunks of a root a member says that it holds.
func (m *node) shows(from *node, im *image) (n uint64) {
	for b, err := range m.exchange.Bitmaps(m.w.t.Context(), from.id, im.id, 1<<32) {
		if err == nil {
			n = b.Len()
		}
		break
	}
	return n
}

// private is an image of one farm that a member of it holds, and decoys: images of
// other scopes that have its first chunk, whose packs are bad but for the map.
type private struct {
	*world
	im     *image
	victim *node
	thief  *node
	decoys []*image
}

func newPrivate(t *testing.T) *private {
	w := newWorld(t)
	p := &private{world: w, im: w.publish(imageConfig{chunks: 100, scope: content.Farm("alpha")})}
	p.victim, p.thief = w.join("alpha", nil), w.join("beta", nil)
	for _, scope := range []content.Scope{content.Mesh(), content.Public()} {
		d := w.publish(imageConfig{chunks: 100, scope: scope, seed: 1, older: p.im, changed: 2})
		if d.Head.Node.CID == p.im.Head.Node.CID {
			t.Fatal("the decoy is the image")
		}
		p.decoys = append(p.decoys, d)
		if scope == content.Mesh() {
			p.decoys = append(p.decoys, w.forge(d, func(h *pack.Head) { h.Scope = content.Farm("beta") }))
		}
	}
	for _, d := range p.decoys {
		for key := range w.packs(t, d.Head.Scope) {
			if key != d.Head.Node.Pack.Key() {
				w.bucket.Corrupt(key, func(b []byte) { clear(b) })
			}
		}
	}
	return p
}

// packs are the keys of the packs of a scope.
func (w *world) packs(t *testing.T, scope content.Scope) map[string]bool {
	out := map[string]bool{}
	for info, err := range w.bucket.List(t.Context(), "packs/"+scope.String()+"/", "") {
		w.check(err)
		out[info.Key] = true
	}
	return out
}

// names are the objects of the private image.
func (p *private) names(t *testing.T, g *fetch.Image) taken {
	out := taken{}
	for id, err := range g.CIDs(t.Context()) {
		p.check(err)
		out[id] = true
	}
	return out
}

// TestKnowingACIDOpensNothing: a member of another farm introduces roots of its own
// that name private objects: as their map, as its page, and as chunks of a map.
func TestKnowingACIDOpensNothing(t *testing.T) {
	p := newPrivate(t)
	g := p.victim.open(p.im)
	p.check(readAll(t.Context(), g, p.im))
	secret := p.names(t, g)
	node, page, chunk := p.im.Head.Node.CID, p.im.Head.Page.CID, content.Seal(p.im.chunks[1]).CID()
	check := func(what string, got taken) {
		t.Helper()
		for id := range got {
			if secret[id] {
				t.Errorf("%s: a private object.Object was sent", what)
			}
		}
	}
	tries := int64(0)
	for _, decoy := range p.decoys {
		for name, change := range map[string]func(*pack.Head){
			"the map":                func(h *pack.Head) { h.Root.Map, h.Node.CID, h.Page.CID = node, node, page },
			"the map, another page":  func(h *pack.Head) { h.Root.Map, h.Node.CID = node, node },
			"a page":                 func(h *pack.Head) { h.Page.CID = page },
			"a chunk as page":        func(h *pack.Head) { h.Page.CID = chunk },
			"chunks as map and page": func(h *pack.Head) { h.Root.Map, h.Node.CID, h.Page.CID = chunk, chunk, chunk },
			"chunks":                 func(*pack.Head) {},
		} {
			t.Run(fmt.Sprintf("%s, %s", decoy.Head.Scope, name), func(t *testing.T) {
				tries++ // of another size each, which makes it another root
				im := p.forge(decoy, func(h *pack.Head) { h.Root.Size -= tries * content.SectorSize; change(h) })
				check("map node", p.thief.take(p.victim, im, 1, 0))
				check("chunk", p.thief.take(p.victim, im, 0, 1, 2, 4, 5))
				if n := p.thief.shows(p.victim, im); n > 0 {
					t.Errorf("its bitmap shows %d chunks", n)
				}
			})
		}
	}
	for id := range secret {
		if p.victim.cache.HasFor(id, cache.ReachMesh) {
			t.Fatal("a private object.Object goes farther than its farm")
		}
	}
	mate := p.join("alpha", nil)
	if got := mate.take(p.victim, p.im, 0, 1); !got[chunk] {
		t.Error("a member of the farm gets nothing")
	}
	if n := mate.shows(p.victim, p.im); n == 0 {
		t.Error("a member of the farm is shown nothing")
	}
}

// TestFlightsOfOthersAreNoWayIn: a private chunk is on its way for a guest when it is
// asked for under a wider root.
func TestFlightsOfOthersAreNoWayIn(t *testing.T) {
	p := newPrivate(t)
	g := p.victim.open(p.im)
	p.check(g.ReadChunk(t.Context(), 3, 0, make([]byte, 1))) // a hole: brings in the map
	decoy := p.decoys[0]
	p.thief.take(p.victim, decoy, 1, 0)
	gate := make(chan struct{})
	p.hooks.gate.Store(&gate)
	read := make(chan error, 1)
	go func() { read <- g.ReadChunk(t.Context(), 1, 0, make([]byte, 1)) }()
	p.eventually("the private chunk is on its way", func() bool { return p.victim.Flights() > 0 })
	under := p.victim.Flights()
	got := make(chan taken, 1)
	go func() { got <- p.thief.take(p.victim, decoy, 0, 1) }()
	p.eventually("it is asked for", func() bool { return p.victim.Flights() > under })
	close(gate)
	p.check(<-read)
	if (<-got)[content.Seal(p.im.chunks[1]).CID()] {
		t.Error("the private chunk was sent")
	}
}

// TestBytesObtainedWiderGoWider: what is here under a narrow root is fetched again
// under a wide one, and from then on goes as far.
func TestBytesObtainedWiderGoWider(t *testing.T) {
	w := newWorld(t)
	narrow := w.publish(imageConfig{chunks: 20, scope: content.Farm("alpha")})
	wide := w.publish(imageConfig{chunks: 20})
	if narrow.id != wide.id {
		t.Fatal("they are not the same root")
	}
	m, far := w.join("alpha", nil), w.join("beta", nil)
	w.check(readAll(t.Context(), m.open(narrow), narrow))
	chunk := content.Seal(wide.chunks[1]).CID()
	if far.take(m, narrow, 0, 1)[chunk] {
		t.Error("a chunk of another farm was sent")
	}
	if !far.take(m, wide, 0, 1)[chunk] {
		t.Error("a chunk that the mesh may read is not fetched for it")
	}
	w.eventually("it goes as far", func() bool { return m.cache.HasFor(chunk, cache.ReachMesh) })
	w.hooks.down.Store(true)
	if !far.take(m, wide, 0, 1)[chunk] {
		t.Error("a chunk that was fetched for the mesh is not sent")
	}
}

// TestFalsePages: another record names the same root with a page that is not its own,
// introduced or looked up, before the true one. It harms nobody who reads by that.
func TestFalsePages(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 40})
	for _, scope := range []content.Scope{content.Mesh(), content.Public()} {
		other := w.publish(imageConfig{chunks: 40, scope: scope, seed: 1})
		false_ := w.forge(other, func(h *pack.Head) { h.Root, h.Node.CID = im.Head.Root, im.Head.Root.Map })
		if false_.id != im.id {
			t.Fatal("the record is of another root")
		}
		t.Run("introduced first, "+scope.String(), func(t *testing.T) {
			rogue, m, mate := w.join("rogue", nil), w.join("north", nil), w.join("south", nil)
			w.check(rogue.exchange.Introduce(t.Context(), m.id, false_.Envelope))
			rogue.take(m, false_, 1, 0)
			w.check(m.open(im).Warm(t.Context(), nil))
			if !mate.take(m, im, 0, 1)[content.Seal(im.chunks[1]).CID()] {
				t.Error("a member that warmed the image does not send of it")
			}
		})
		t.Run("looked up first, "+scope.String(), func(t *testing.T) {
			m, mate := w.join("north", nil), w.join("south", nil)
			m.open(false_)
			w.check(m.open(im).Warm(t.Context(), nil))
			if n := mate.shows(m, im); n != im.stats.Chunks {
				t.Errorf("a member that warmed the image shows %d chunks of %d", n, im.stats.Chunks)
			}
			if !mate.take(m, im, 0, 1)[content.Seal(im.chunks[1]).CID()] {
				t.Error("a member that warmed the image does not send of it")
			}
		})
	}
}

// TestIntroducedRootsAreBounded, in number and in what each takes, and never push out
// what was looked up.
func TestIntroducedRootsAreBounded(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 40})
	n := 0
	m := w.join("north", func(cfg *fetch.Config) {
		real := cfg.Introduce
		cfg.Introduce = func(envelope []byte) (fetch.Root, error) {
			if len(envelope) > 8 {
				return real(envelope)
			}
			n++ // one introduces at a time
			h := im.Head
			h.Root = content.Root{Size: content.SizeMax - int64(n)*content.SectorSize, ChunkSize: content.ChunkSizeMin, Map: im.Head.Root.Map}
			return fetch.Root{Head: h}, nil
		}
	})
	w.check(readAll(t.Context(), m.open(im), im))
	friend, rogue := w.join("south", nil), w.join("south", nil)
	theirs := w.publish(imageConfig{chunks: 8, seed: 1})
	w.check(friend.exchange.Introduce(t.Context(), m.id, theirs.Envelope))
	who := exchange.Peer{ID: rogue.id, Identity: trust.Identity{Role: trust.RoleNode, Farm: "south"}}
	before := heap()
	for range 100_000 {
		w.check(m.Introduce(t.Context(), who, []byte("huge")))
	}
	if grown := int64(heap()) - int64(before); grown > 16<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	if !friend.take(m, im, 0, 1)[content.Seal(im.chunks[1]).CID()] {
		t.Error("a root that was looked up is forgotten")
	}
	if !friend.has(m.id, theirs.id) {
		t.Error("a root that another member introduced is forgotten")
	}
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestForgottenRoot: a public image is removed. Nobody is served under it, those who
// follow its bitmap are told, its chunks are public no more, and what an image of the
// mesh shares with it goes as far as that.
func TestForgottenRoot(t *testing.T) {
	w := newWorld(t)
	public := w.publish(imageConfig{chunks: 60, scope: content.Public()})
	mesh := w.publish(imageConfig{chunks: 60, seed: 1, older: public, changed: 2})
	m, far, stranger := w.join("north", nil), w.join("south", nil), w.enter("", "", nil, nil)
	g := m.open(public)
	w.check(readAll(t.Context(), g, public))
	w.check(readAll(t.Context(), m.open(mesh), mesh))
	shared, own := content.Seal(public.chunks[1]).CID(), content.Seal(public.chunks[2]).CID()
	if !m.cache.HasFor(shared, cache.ReachPublic) || !m.cache.HasFor(own, cache.ReachPublic) || !stranger.has(m.id, public.id) {
		t.Fatal("the image is not public")
	}
	following := make(chan error, 1)
	heard := make(chan struct{})
	go func() {
		var last error
		for _, err := range stranger.exchange.Bitmaps(context.Background(), m.id, public.id, 1<<32) {
			if last = err; err == nil {
				close(heard)
			}
		}
		following <- last
	}()
	<-heard

	w.eventually("what was read ahead has landed", func() bool { return m.Flights() == 0 })
	m.Forget(public.id, content.Public())
	if stranger.has(m.id, public.id) {
		t.Error("the root is served")
	}
	if err := <-following; !errors.Is(err, content.ErrNotFound) {
		t.Errorf("who follows its bitmap hears %v", err)
	}
	w.eventually("its own chunks go nowhere", func() bool { r, ok := m.cache.Reach(own); return ok && r == cache.ReachNone })
	w.eventually("what is shared goes to the mesh", func() bool { r, ok := m.cache.Reach(shared); return ok && r == cache.ReachMesh })
	for id, err := range g.CIDs(t.Context()) {
		w.check(err)
		if m.cache.HasFor(id, cache.ReachPublic) {
			t.Fatal("an object of it is public")
		}
	}
	w.check(readAll(t.Context(), g, public)) // who has it open reads on
	w.hooks.down.Store(true)
	if !far.take(m, mesh, 0, 1)[shared] {
		t.Error("what an image of the mesh shares with it is not sent")
	}
	m.stop()
	again, err := cache.Open(cache.Config{Dir: m.dir, Quota: 1 << 30, ScrubRate: -1})
	w.check(err)
	defer again.Close()
	if r, _ := again.Reach(own); r != cache.ReachNone {
		t.Error("a restart brings it back")
	}
	if r, _ := again.Reach(shared); r != cache.ReachMesh {
		t.Errorf("after a restart what is shared has reach %d", r)
	}
}

// TestFollowedBeforeItWasLookedUp: a member that met a root by another's word shows what
// comes under it also once it has looked the root up itself.
func TestFollowedBeforeItWasLookedUp(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 40})
	m, mate := w.join("north", nil), w.join("south", nil)
	w.check(mate.exchange.Introduce(t.Context(), m.id, im.Envelope))
	heard, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		var last error
		for b, err := range mate.exchange.Bitmaps(context.Background(), m.id, im.id, 1<<32) {
			if last = err; err == nil && b.Len() == 0 {
				close(heard)
			}
		}
		ended <- last
	}()
	<-heard
	w.check(readAll(t.Context(), m.open(im), im))
	select {
	case err := <-ended:
		if !errors.Is(err, content.ErrNotFound) {
			t.Errorf("who follows its bitmap hears %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("who follows its bitmap hears of nothing that comes")
	}
	w.eventually("it shows all", func() bool { return mate.shows(m, im) == im.stats.Chunks })
}

// TestOpenedIsNotLearned: who opens a root by what it kept of it, as a volume does
// after a restart, makes it known to nobody.
func TestOpenedIsNotLearned(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 20, scope: content.Public()})
	m := w.join("north", nil)
	g, err := m.Open(im.Root)
	w.check(err)
	w.check(readAll(t.Context(), g, im))
	w.eventually("all has landed", func() bool { return m.Flights() == 0 })
	mate := w.join("north", nil)
	if mate.has(m.id, im.id) {
		t.Error("the root is served")
	}
	if r, ok := m.cache.Reach(content.Seal(im.chunks[1]).CID()); !ok || r != cache.ReachFarm {
		t.Errorf("a chunk has reach %d", r)
	}
}

// TestMapsThatRepeat: a map names one chunk everywhere, or more than its root has. A
// bitmap has no more of it than a cache may hold, and nothing beyond the root.
func TestMapsThatRepeat(t *testing.T) {
	w := newWorld(t)
	m, rogue := w.join("north", nil), w.join("south", nil)
	b, err := build.New(t.Context(), build.Config{Bucket: w.bucket, Scope: content.Mesh(), Size: 2 * content.MapFanout * content.ChunkSizeDefault})
	w.check(err)
	same := randomChunk(1, 1)
	for i := range uint64(2 * content.MapFanout) {
		w.check(b.Add(t.Context(), i, same))
	}
	im := &image{}
	im.Head, _, err = b.Finish(t.Context())
	w.check(err)
	repeats := w.forge(im, func(*pack.Head) {})
	if !rogue.take(m, repeats, 0, 1)[content.Seal(same).CID()] {
		t.Fatal("the chunk is not fetched")
	}
	landed := func() { w.eventually("all has landed", func() bool { return m.Flights() == 0 }) }
	landed()
	if n, most := rogue.shows(m, repeats), 2*m.cache.Stats().Chunks; n == 0 || n > uint64(most) {
		t.Errorf("a bitmap of %d chunks, want some and at most %d", n, most)
	}
	im = w.publish(imageConfig{chunks: 40})
	w.check(readAll(t.Context(), m.open(im), im))
	small := w.forge(im, func(h *pack.Head) { h.Root.Size = 8 * content.ChunkSizeDefault })
	if n := rogue.shows(m, small); n > 8 {
		t.Errorf("a root of 8 chunks shows %d", n)
	}
	if got := rogue.take(m, small, 0, 1); len(got) == 0 {
		t.Error("a chunk of it is not sent")
	}
	landed()
	w.eventually("it is shown", func() bool { // what lay in the cache is found by the next look there
		n := rogue.shows(m, small)
		if n > 8 {
			t.Fatalf("a root of 8 chunks shows %d", n)
		}
		return n > 0
	})
}
