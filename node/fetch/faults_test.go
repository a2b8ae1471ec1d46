package fetch

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// eventually waits for what happens on its own.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := within(t, deadline)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: never", what)
		}
	}
}

func TestASecondFarmTakesFromTheFirst(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), chunksOfTest)
	north := ms.farm(t, "north", 2, img)
	warm(t, img, north...)
	for _, m := range north {
		if err := m.Hold(t.Context(), m.learn(img).ID()); err != nil {
			t.Fatal(err)
		}
	}
	key := swarm.KeyFor(img.head.Scope, north[0].learn(img).ID(), [32]byte{})
	eventually(t, "both members of the farm announce", func() bool { return board{ms, nil}.announced(key) == 2 })
	ms.bucket.took()

	south := ms.farm(t, "south", 3, img)
	warm(t, img, south...)
	check(t, img, 2, south...)
	ms.atMost(t, "the second farm", img, 0.05)
	var far, near int64
	for _, m := range south {
		far, near = far+m.Bytes()[FromSwarm], near+m.Bytes()[FromFarm]
	}
	if float64(far) > 1.5*float64(img.stored) {
		t.Errorf("%.2f times the image crossed between the farms, %.2f times within", float64(far)/float64(img.stored), float64(near)/float64(img.stored))
	}
}

func TestReadersOutliveTheLead(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), chunksOfTest)
	members := ms.farm(t, "north", 4, img)
	var farm []plan.Peer
	for _, m := range members {
		farm = append(farm, plan.Peer(m.swarm.ID()))
	}
	first := plan.Lead(runKey(img.head.Node.Run()), farm) // of what all read first
	lead := members[slices.Index(farm, first)]
	members = slices.DeleteFunc(members, func(m *node) bool { return m == lead })
	stuck := make(chan struct{})
	ms.bucket.mu.Lock()
	ms.bucket.stuck = stuck
	ms.bucket.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { check(t, img, 4, members...) })
	eventually(t, "the lead has work", func() bool {
		lead.Fetcher.mu.Lock()
		defer lead.Fetcher.mu.Unlock()
		return len(lead.reading) > 0
	})
	lead.stop()
	close(stuck)
	wg.Wait()
	ms.atMost(t, "without the lead", img, 1.3)
}

// liarServer sends other chunks than those asked for; its map is right.
type liarServer struct{ *Fetcher }

func (l liarServer) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	if req.Level > 0 {
		l.Fetcher.Want(ctx, from, req, w)
		return
	}
	for _, index := range req.Indexes {
		if w.Data(ctx, index, content.Seal(make([]byte, content.ChunkSizeDefault)), nil) != nil {
			return
		}
	}
}

// Bitmaps claims to have everything.
func (l liarServer) Bitmaps(ctx context.Context, _ exchange.Peer, _ content.CID, send func(*content.Bitmap) error) error {
	var all content.Bitmap
	for i := range uint64(2 * content.MapFanout) {
		all.Add(i)
	}
	if err := send(&all); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func lying(f *Fetcher) exchange.Server { return liarServer{f} }

func TestALiarOfTheFarmIsSetAside(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), 64)
	members := ms.farm(t, "north", 2, img)
	liar := ms.start(t, "north", options{serve: lying})
	sees(append(members, liar)...)
	check(t, img, 4, members...)
	aside := false
	for _, m := range members {
		_, is := m.Aside()[liar.swarm.ID()]
		aside = aside || is
	}
	if !aside {
		t.Error("nobody has set the liar aside")
	}
	if len(ms.banned) > 0 {
		t.Errorf("members of the farm were banned: %v", ms.banned)
	}
}

func TestALiarElsewhereIsBanned(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), 64)
	liar := ms.start(t, "south", options{serve: lying})
	m := ms.farm(t, "north", 1, img)[0]
	id := m.learn(img).ID()
	if err := (board{ms, liar}).Announce(swarm.KeyFor(img.head.Scope, id, [32]byte{})); err != nil {
		t.Fatal(err)
	}
	m.Prepare(t.Context(), id)
	warm(t, img, m)
	check(t, img, 1, m)
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if !slices.Contains(ms.banned, liar.swarm.ID()) {
		t.Error("the liar was not banned")
	}
}

func TestWithoutAnOrigin(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), 64)
	holder := ms.farm(t, "north", 1, img)[0]
	warm(t, img, holder)
	cut := ms.start(t, "north", options{noOrigin: true})
	sees(holder, cut)
	check(t, img, 2, cut)

	alone := ms.start(t, "south", options{noOrigin: true})
	other := ms.start(t, "south", options{noOrigin: true})
	other.learn(img)
	sees(alone, other)
	began := time.Now()
	err := alone.learn(img).ReadChunk(within(t, deadline), 0, 0, make([]byte, 4096))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("failed after %s", took)
	}
	if !errors.Is(err, content.ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	for _, source := range []string{"cache", "origin"} {
		if !strings.Contains(err.Error(), source) {
			t.Errorf("%q does not tell of %s", err, source)
		}
	}
}

func TestACutMemberReadsThroughItsFarm(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), 64)
	cut := ms.start(t, "north", options{noOrigin: true})
	members := append(ms.farm(t, "north", 2, img), cut)
	cut.learn(img)
	sees(members...)
	check(t, img, 4, cut)
	ms.atMost(t, "a member without an origin", img, 1.02)
}

func TestFlippedBytesInTheCache(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), 64)
	m := ms.farm(t, "north", 1, img)[0]
	warm(t, img, m)
	ms.bucket.took()
	damaged := 0
	for _, name := range m.files() {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		first := img.chunks[0].Bytes()[:64]
		if at := strings.Index(string(b), string(first)); at >= 0 {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{^first[0]}, int64(at)); err != nil {
				t.Fatal(err)
			}
			f.Close()
			damaged++
		}
	}
	if damaged == 0 {
		t.Fatal("the chunk was not found in the files of the cache")
	}
	// Get hashes whole; the cheap reads do so once a day, and after a start.
	if _, err := m.cfg.Cache.Get(img.chunks[0].CID(), nil); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("the damage was not found: %v", err)
	}
	check(t, img, 1, m)
	if requests := ms.atMost(t, "a damaged chunk", img, 0.05); requests != 1 {
		t.Errorf("%d requests for one chunk", requests)
	}
}

func TestFlippedBytesAtTheOrigin(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), 64)
	m := ms.farm(t, "north", 1, img)[0]
	opened := m.learn(img)
	p := make([]byte, content.ChunkSizeDefault)
	bad, _, err := m.chunk(t.Context(), opened.rs, 3, request{})
	if err != nil {
		t.Fatal(err)
	}
	ms.bucket.mu.Lock()
	ms.bucket.flip = bad.at
	ms.bucket.mu.Unlock()
	for index := range img.chunks {
		err := opened.readWhole(within(t, deadline), index, p, img)
		switch {
		case index != 3 && err != nil:
			t.Error(err)
		case index == 3 && (!errors.Is(err, content.ErrUnavailable) && !errors.Is(err, content.ErrCorrupt)):
			t.Errorf("the damaged chunk: %v", err)
		case index == 3 && !strings.Contains(err.Error(), string(bad.at.Pack)):
			t.Errorf("%v does not name pack %s", err, bad.at.Pack)
		}
	}
}

func TestScopes(t *testing.T) {
	ms := newMesh(t)
	private, shared, public := ms.build(t, content.Farm("north"), 4), ms.build(t, content.Mesh(), 5), ms.build(t, content.Public(), 6)
	m := ms.farm(t, "north", 1, private)[0]
	ids := map[string]content.CID{"unknown": content.Sum([]byte("no root"))}
	for name, img := range map[string]image{"farm": private, "mesh": shared, "public": public} {
		ids[name] = m.learn(img).ID()
		warm(t, img, m)
	}
	for asker, may := range map[*node][]string{
		ms.start(t, "south", options{}):                {"mesh", "public"},
		ms.start(t, "north", options{}):                {"farm", "mesh", "public"},
		ms.start(t, "", options{role: "stranger"}):     {"public"},
		ms.start(t, "", options{role: trust.RoleSeed}): {"public"},
	} {
		asker.swarm.Learn(m.info())
		for name, id := range ids {
			var replies []exchange.Reply
			err := asker.exchange.Want(within(t, deadline), m.swarm.ID(), exchange.Request{Root: id, Indexes: []uint64{0}, Fetch: true}, func(r exchange.Reply) {
				replies = append(replies, r)
			})
			if err != nil || len(replies) != 1 {
				t.Fatalf("%s: %v, %v", name, replies, err)
			}
			if _, data := replies[0].(*exchange.Data); data != slices.Contains(may, name) {
				t.Errorf("a %s of %q asks for %s: %T", asker.identity.Role, asker.identity.Farm, name, replies[0])
			} else if _, unknown := replies[0].(exchange.Unknown); !data && !unknown {
				t.Errorf("a %s of %q asks for %s: %T", asker.identity.Role, asker.identity.Farm, name, replies[0])
			}
		}
	}
}

// TestMembersThatSeeOthersLead has each member see a farm of its own, so that they
// take each other for leads; nobody waits for somebody who waits for it.
func TestMembersThatSeeOthersLead(t *testing.T) {
	ms := newMesh(t)
	img := ms.build(t, content.Mesh(), 96)
	members := ms.farm(t, "north", 4, img)
	for i, m := range members {
		for j := range members {
			if j != i {
				m.mu.Lock()
				m.live = []peer.ID{m.swarm.ID(), members[j].swarm.ID()}
				m.mu.Unlock()
			}
		}
	}
	began := time.Now()
	check(t, img, 8, members...)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	ms.atMost(t, "members whose views differ", img, 4)
}
