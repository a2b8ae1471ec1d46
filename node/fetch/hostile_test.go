package fetch_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/x/simlibp2p"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// simulate runs f with a world whose members are on a simulated network, in
// simulated time.
func simulate(t *testing.T, members int, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		link := simlibp2p.NodeLinkSettingsAndCount{Count: members}
		link.LinkSettings.Downlink.BitsPerSecond = 1000 * simlibp2p.OneMbps
		link.LinkSettings.Uplink.BitsPerSecond = 1000 * simlibp2p.OneMbps
		net, meta, err := simlibp2p.SimpleLibp2pNetwork([]simlibp2p.NodeLinkSettingsAndCount{link}, latency, simlibp2p.NetworkSettings{})
		if err != nil {
			t.Fatal(err)
		}
		net.Start()
		t.Cleanup(func() { net.Close() })
		w := newWorld(t)
		w.hosts = meta.Nodes
		f(w)
		for _, h := range w.hosts {
			w.check(h.Close())
		}
	})
}

// latency is half a millisecond for each packet.
func latency[P any](P) time.Duration { return time.Millisecond / 2 }

// smallImage is the chunks of an image of a run or two.
const smallImage = 40

// staller says for ever that it makes progress, and brings nothing. With shows it
// shows all of what it is asked for.
type staller struct {
	exchange.Server
	shows bool
	asked *atomic.Int64
}

func (s staller) Want(ctx context.Context, _ exchange.Peer, _ exchange.Request, w exchange.Responder) {
	s.asked.Add(1)
	tick := time.NewTicker(exchange.ProgressInterval)
	defer tick.Stop()
	for w.Progress() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s staller) Bitmaps(ctx context.Context, _ exchange.Peer, _ content.CID, send func(*content.Bitmap) error) error {
	var all content.Bitmap
	if s.shows {
		for i := range uint64(smallImage) {
			all.Add(i)
		}
	}
	if err := send(&all); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// stall starts members that do, and announces the image for them.
func (w *world) stall(im *image, farm string, n int, shows bool) (asked *atomic.Int64) {
	w.t.Helper()
	asked = new(atomic.Int64)
	for range n {
		s := w.enter(farm, trust.RoleNode, nil, func(s exchange.Server) exchange.Server { return staller{s, shows, asked} })
		w.check(s.Announce(swarm.KeyFor(im.Head.Scope, im.id, w.secret)))
	}
	return asked
}

// TestStallersHoldNobody: four members say for ever that they make progress, as
// leads, as holders, and elsewhere. A guest's reads end well and soon.
func TestStallersHoldNobody(t *testing.T) {
	const most = 8 * time.Second // for the first read, which takes a map node and a chunk
	for name, c := range map[string]struct {
		farm  string
		shows bool
	}{
		"leads":               {"north", false},
		"leads that show all": {"north", true},
		"elsewhere":           {"south", false},
		"holders elsewhere":   {"south", true},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 5, func(w *world) {
				im := w.publish(imageConfig{chunks: smallImage})
				asked := w.stall(im, c.farm, 4, c.shows)
				m := w.join("north", nil)
				g := m.open(im)
				g.Prepare(w.t.Context())
				p := make([]byte, content.ChunkSizeDefault)
				var worst time.Duration
				for i := range im.chunks {
					begun := time.Now()
					w.check(readOne(w.t.Context(), g, im, i, p))
					worst = max(worst, time.Since(begun))
				}
				w.t.Logf("the slowest read took %s; the stallers were asked %d times", worst, asked.Load())
				if worst > most {
					w.t.Errorf("a read took %s, want at most %s", worst, most)
				}
			})
		})
	}
}

// TestStallersBeforeAHolder: a guest that they hold up gets what another member has,
// and the origin is not asked.
func TestStallersBeforeAHolder(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: smallImage})
	w.warmAll(im, w.join("north", nil))
	w.stall(im, "north", 2, true)
	m := w.join("north", nil)
	m.origin.Store(false)
	w.forget()
	w.check(readAll(t.Context(), m.open(im), im))
	w.copies(im, 0)
}

// TestSlowLeadIsNotDoubled: the origin takes longer than a guest waits until it asks
// others beside the lead. All wait for it, and each run is read once.
func TestSlowLeadIsNotDoubled(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: smallImage})
	members := w.farm("north", 4)
	w.hooks.slow.Store(int64(1200 * time.Millisecond))
	w.forget()
	w.check(all(members, func(m *node) error {
		return readOne(t.Context(), m.open(im), im, 0, make([]byte, content.ChunkSizeDefault))
	}))
	w.hooks.slow.Store(0)
	w.check(all(members, func(m *node) error { return m.open(im).Warm(t.Context(), nil) }))
	w.copies(im, 1.1)
}

// spy notes what it is sent.
type spy struct {
	exchange.Server
	heard *atomic.Int64
}

func (s spy) Introduce(context.Context, exchange.Peer, []byte) error { s.heard.Add(1); return nil }

func (s spy) Want(_ context.Context, _ exchange.Peer, _ exchange.Request, w exchange.Responder) {
	s.heard.Add(1)
	w.Unknown()
}

func (s spy) Bitmaps(context.Context, exchange.Peer, content.CID, func(*content.Bitmap) error) error {
	s.heard.Add(1)
	return content.ErrNotFound
}

// TestOnlyWhoMayReadIsAsked: who provides the key of a root, or gossips as a member
// of the farm, is asked, followed and shown the record only if its certificate says
// that it may read the root.
func TestOnlyWhoMayReadIsAsked(t *testing.T) {
	for _, c := range []struct {
		name, farm string
		role       trust.Role
		gossips    bool // as one of the farm
		scope      content.Scope
		asked      bool
	}{
		{name: "a stranger", scope: content.Mesh()},
		{name: "a stranger, of public content", scope: content.Public()},
		{name: "a stranger that gossips", gossips: true, scope: content.Mesh()},
		{name: "a seed", role: trust.RoleSeed, scope: content.Mesh()},
		{name: "a seed, of public content", role: trust.RoleSeed, scope: content.Public(), asked: true},
		{name: "a seed that gossips", role: trust.RoleSeed, gossips: true, scope: content.Public()},
		{name: "a member of another farm", role: trust.RoleNode, farm: "south", scope: content.Farm("north")},
		{name: "a member of another farm, of the mesh's content", role: trust.RoleNode, farm: "south", scope: content.Mesh(), asked: true},
		{name: "a member of another farm that gossips", role: trust.RoleNode, farm: "south", gossips: true, scope: content.Mesh()},
		{name: "a member of this farm", role: trust.RoleNode, farm: "north", gossips: true, scope: content.Farm("north"), asked: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, 3, func(w *world) {
				im := w.publish(imageConfig{chunks: smallImage, scope: c.scope})
				var heard atomic.Int64
				other := w.enter(c.farm, c.role, nil, func(s exchange.Server) exchange.Server { return spy{s, &heard} })
				w.check(other.Announce(swarm.KeyFor(im.Head.Scope, im.id, w.secret)))
				m := w.join("north", nil)
				live := []peer.ID{m.id}
				if c.gossips {
					live = append(live, other.id)
				}
				m.sees.Store(&live)
				g := m.open(im)
				g.Prepare(w.t.Context())
				w.check(readAll(w.t.Context(), g, im))
				<-time.After(time.Minute) // of simulated time: what is tried again
				if got := heard.Load() > 0; got != c.asked {
					w.t.Errorf("asked is %t, want %t", got, c.asked)
				}
			})
		})
	}
}

// grower shows more and more, up to so many chunks.
type grower struct {
	exchange.Server
	most uint64
}

func (s grower) Bitmaps(ctx context.Context, _ exchange.Peer, _ content.CID, send func(*content.Bitmap) error) error {
	for base := uint64(0); ctx.Err() == nil; base = (base + 1<<16) % s.most {
		var b content.Bitmap
		for i := range uint64(1 << 14) { // no runs: each container takes 8 KiB in memory
			b.Add(base + 4*i)
		}
		if err := send(&b); err != nil {
			return err
		}
	}
	return nil
}

// TestBitmapGrowers: who shows chunks that there are not is set aside, and shows
// nothing; a guest reads on.
func TestBitmapGrowers(t *testing.T) {
	for farm, banned := range map[string]bool{"north": false, "south": true} {
		t.Run(fmt.Sprintf("of %s", farm), func(t *testing.T) {
			w := newWorld(t)
			im := w.publish(imageConfig{chunks: smallImage})
			var growers []*node
			for range 3 {
				n := w.enter(farm, trust.RoleNode, nil, func(s exchange.Server) exchange.Server { return grower{s, 1 << 32} })
				w.check(n.Announce(swarm.KeyFor(im.Head.Scope, im.id, w.secret)))
				growers = append(growers, n)
			}
			m := w.join("north", nil)
			g := m.open(im)
			g.Prepare(t.Context())
			w.check(readAll(t.Context(), g, im))
			for _, n := range growers {
				w.eventually("a grower is set aside", func() bool { return m.isAside(n) })
				if m.isBanned(n) != banned {
					t.Errorf("banned is %t, want %t", !banned, banned)
				}
			}
			if b := m.ShownBytes(); b > 1<<16 {
				t.Errorf("their bitmaps take %d bytes", b)
			}
		})
	}
}
