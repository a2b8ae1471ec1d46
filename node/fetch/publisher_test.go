package fetch_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// misplaced is a record of an image that a publisher gone bad signed: with the page of
// another image, so that each chunk is said to lie where it does not. The root is the
// same, or one that is so many sectors smaller. The member has met the map and the page.
func (w *world) misplaced(im *image, m *node, smaller int64) *image {
	w.t.Helper()
	other := w.publish(imageConfig{chunks: len(im.chunks), scope: im.Head.Scope, seed: 1})
	reader := w.join("elsewhere", nil)
	for _, known := range []*image{im, other} {
		w.check(reader.open(known).ReadChunk(w.t.Context(), 3, 0, make([]byte, 1))) // a hole: brings in the map
		for _, id := range []content.CID{known.Head.Node.CID, known.Head.Page.CID} {
			v, err := reader.cache.Get(id, nil)
			w.check(err)
			w.check(m.cache.Put(v, cache.ReachMesh))
		}
	}
	reader.leave()
	return w.forge(im, func(h *pack.Head) { h.Page, h.Root.Size = other.Head.Page, h.Root.Size-smaller*content.SectorSize })
}

// TestFalsePlacesFailNoOthersReads: a chunk is on its way for a member that asks by a
// record with false places when a guest wants it by the true one. That the first read
// fails is nothing to the guest.
func TestFalsePlacesFailNoOthersReads(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 40})
	m, rogue := w.join("north", nil), w.join("south", nil)
	g := m.open(im)
	w.check(g.ReadChunk(t.Context(), 3, 0, make([]byte, 1)))
	bad := w.misplaced(im, m, 1)
	rogue.take(m, bad, 1, 0)
	w.hooks.slow.Store(int64(300 * time.Millisecond))
	p := make([]byte, content.ChunkSizeDefault)
	for _, at := range []int{1, 20, 39} {
		asked := make(chan error, 1)
		go func() {
			req := exchange.Request{Root: bad.id, Indexes: []uint64{uint64(at)}, Fetch: true, Priority: exchange.PriorityGuest}
			asked <- rogue.exchange.Want(t.Context(), m.id, req, func(exchange.Reply) {})
		}()
		w.eventually("the rogue's read is under way", func() bool { return m.Flights() > 0 })
		if err := readOne(t.Context(), g, im, at, p); err != nil {
			t.Errorf("a guest reads by the true record: %v", err)
		}
		<-asked
	}
}

// TestFalsePagesBesideNoOrigin: a member that can't read the origin asks another of its
// farm, which was told of the root by a false record before, or has looked one up.
func TestFalsePagesBesideNoOrigin(t *testing.T) {
	for name, tell := range map[string]func(m, rogue *node, bad *image){
		"introduced": func(m, rogue *node, bad *image) { rogue.take(m, bad, 1, 0) },
		"looked up":  func(m, _ *node, bad *image) { m.open(bad) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			im := w.publish(imageConfig{chunks: 40})
			m, cut, rogue := w.join("north", nil), w.join("north", nil), w.join("south", nil)
			bad := w.misplaced(im, m, 0)
			cut.origin.Store(false)
			tell(m, rogue, bad)
			if err := readAll(t.Context(), cut.open(im), im); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestWhoReadsNothingHoldsLittle: a member has a whole image brought in, and does not
// take it.
func TestWhoReadsNothingHoldsLittle(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 600})
	m, mate, rogue := w.join("north", nil), w.join("south", nil), w.join("south", nil)
	rogue.take(m, im, 1, 0)
	gate := make(chan struct{})
	w.hooks.gate.Store(&gate)
	var indexes []uint64
	for i, c := range im.chunks {
		if c != nil {
			indexes = append(indexes, uint64(i))
		}
	}
	stuck := make(chan struct{})
	done := make(chan error, 1)
	before := heap()
	go func() {
		req := exchange.Request{Root: im.id, Indexes: indexes, Fetch: true, Priority: exchange.PriorityPrefetch}
		done <- rogue.exchange.Want(t.Context(), m.id, req, func(r exchange.Reply) {
			if _, ok := r.(*exchange.Data); ok {
				<-stuck
			}
		})
	}()
	w.eventually("it is asked for", func() bool { return m.Flights() > 0 })
	close(gate)
	for len(indexes) > 0 {
		n := min(8, len(indexes))
		mate.take(m, im, 0, indexes[:n]...)
		indexes = indexes[n:]
	}
	if grown := int64(heap()) - int64(before); grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	runtime.KeepAlive(im) // it is in both figures
	close(stuck)
	<-done
}

// answers takes what a member is answered. Data waits for the gate, if there is one.
type answers struct {
	gate     chan struct{}
	begun    chan struct{}
	referred peer.ID
	sent     bool
}

func (a *answers) Data(ctx context.Context, _ uint64, _ exchange.Object) error {
	if a.gate == nil {
		a.sent = true
		return nil
	}
	a.begun <- struct{}{}
	select {
	case <-a.gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *answers) Room(size int) []byte    { return make([]byte, 0, size) }
func (a *answers) Absent(...uint64) error  { return nil }
func (a *answers) Nowhere(...uint64) error { return nil }
func (a *answers) Queued(int) error        { return nil }
func (a *answers) Progress() error         { return nil }
func (a *answers) Refer(to peer.ID) error  { a.referred = to; return nil }
func (a *answers) Unknown() error          { return nil }

// TestNobodyIsReferredToStrangers: strangers have a run of a public image, and keep it
// busy. A member that wants it is sent it, and not to them.
func TestNobodyIsReferredToStrangers(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 8, scope: content.Public()})
	m := w.join("north", nil)
	w.check(readAll(t.Context(), m.open(im), im))
	req := exchange.Request{Root: im.id, Indexes: []uint64{0}}
	busy := answers{gate: make(chan struct{}), begun: make(chan struct{})}
	w.eventually("it sends the run", func() bool { // which lands behind what was read
		var first answers
		m.Want(t.Context(), exchange.Peer{ID: "first"}, req, &first)
		return first.sent
	})
	var asking sync.WaitGroup
	for i := range 4 {
		asking.Go(func() { m.Want(t.Context(), exchange.Peer{ID: peer.ID(fmt.Sprint("busy", i))}, req, &busy) })
		<-busy.begun
		m.Want(t.Context(), exchange.Peer{ID: peer.ID(fmt.Sprint("done", i))}, req, &answers{})
	}
	var member answers
	m.Want(t.Context(), exchange.Peer{ID: "member", Identity: trust.Identity{Role: trust.RoleNode, Farm: "south"}}, req, &member)
	if member.referred != "" {
		t.Errorf("a member is referred to %s", string(member.referred))
	}
	close(busy.gate)
	asking.Wait()
}

// TestWhoFailsFirstIsBannedToo: a member of another farm has a request fail, and lies in
// one that is under way.
func TestWhoFailsFirstIsBannedToo(t *testing.T) {
	w := newWorld(t)
	m, rogue, mate := w.join("north", nil), w.join("south", nil), w.join("north", nil)
	for _, other := range []*node{rogue, mate} {
		m.Failed(other.id)
		m.Lied(other.id)
		if !m.isAside(other) {
			t.Error("who lied is not set aside")
		}
	}
	if !m.isBanned(rogue) || m.isBanned(mate) {
		t.Errorf("banned: the rogue %t, the member of the farm %t", m.isBanned(rogue), m.isBanned(mate))
	}
}

// TestSeedsGetWhatIsPublic: of an image of the mesh that shares chunks with a public one
// a seed gets those, under the public root, and learns of the other one nothing.
func TestSeedsGetWhatIsPublic(t *testing.T) {
	w := newWorld(t)
	mesh := w.publish(imageConfig{chunks: 20})
	public := w.publish(imageConfig{chunks: 20, seed: 1, scope: content.Public(), older: mesh, changed: 2})
	m, seed := w.join("north", nil), w.enter("", trust.RoleSeed, nil, nil)
	w.check(readAll(t.Context(), m.open(mesh), mesh))
	if got := seed.take(m, mesh, 0, 1, 2); len(got) > 0 {
		t.Errorf("under the mesh's root it gets %d objects", len(got))
	}
	if got := seed.take(m, mesh, 1, 0); len(got) > 0 {
		t.Errorf("of the mesh's map it gets %d objects", len(got))
	}
	if n := seed.shows(m, mesh); n > 0 {
		t.Errorf("it is shown %d chunks", n)
	}
	if got := seed.take(m, public, 0, 1); len(got) > 0 {
		t.Error("a public root that it introduced was taken")
	}
	m.open(public)
	if got := seed.take(m, public, 0, 1); len(got) > 0 {
		t.Error("what was obtained for the mesh is sent as public")
	}
	w.check(readAll(t.Context(), m.open(public), public))
	w.eventually("a public chunk is sent", func() bool { // its run lands behind what was read
		return seed.take(m, public, 0, 2)[content.Seal(public.chunks[2]).CID()]
	})
}
