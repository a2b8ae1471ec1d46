package attack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// band is several attackers that do the same and name each other in the DHT.
type band struct {
	ring    *ring
	stall   *staller
	hosts   []*hostile
	signers []trust.Signer
}

// gather puts attackers onto one host, connected with the nodes.
func (i insight) gather(t *testing.T, l *lab.Lab, signers []trust.Signer, s *staller, nodes ...*lab.Node) band {
	t.Helper()
	b := band{ring: &ring{}, stall: s, signers: signers}
	at := outside(t, l)
	for k, signer := range signers {
		h := i.enter(t, at, signer, conduct{server: s, answerer: claims{farm: fmt.Sprintf("gang%d", k)}, dht: b.ring.serve})
		b.ring.add(h)
		b.hosts = append(b.hosts, h)
	}
	for _, h := range b.hosts { // all of them are named from the first question on
		h.visit(t, nodes...)
	}
	return b
}

func strangers(n int) (out []trust.Signer) {
	for range n {
		out = append(out, stranger())
	}
	return out
}

// gang is members of role node of as many farms.
func (i insight) gang(t *testing.T, n int) (out []trust.Signer) {
	for k := range n {
		out = append(out, i.node(t, fmt.Sprintf("gang%d", k)))
	}
	return out
}

// TestStallersHoldUpNobody: who provides every key of the DHT, claims every chunk and
// answers with signs of progress for ever holds up no guest, whether it is a stranger
// or a member.
func TestStallersHoldUpNobody(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "alpha", "beta")
	i := look(t, nodes[0])
	for k, c := range []struct {
		who     string
		signers []trust.Signer
	}{{"strangers", strangers(4)}, {"members", i.gang(t, 4)}} {
		t.Run(c.who, func(t *testing.T) {
			d := newDisk(t, l.Dir, imageSize, byte(10+k))
			run(t, nodes[0], "image", "import", c.who, d.path)
			gang := i.gather(t, l, c.signers, &staller{bitmaps: everything}, nodes...)
			var reads sync.WaitGroup
			for _, n := range nodes[1:] {
				reads.Go(func() { d.read(t, n, "v-"+c.who+"-"+n.Name, c.who) })
			}
			reads.Wait()
			t.Logf("the DHT asked them %d times, members for chunks %d times", gang.ring.asked.Load(), gang.stall.asked.Load())
		})
	}
}

// TestStrangersLearnNoRecord: strangers that say that they hold whatever is searched
// for are sent no record, which is private.
func TestStrangersLearnNoRecord(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "alpha")
	i := look(t, nodes[0])
	d := newDisk(t, l.Dir, imageSize, 20)
	run(t, nodes[0], "image", "import", "secret", d.path, "--scope", "farm/alpha")
	gang := i.gather(t, l, strangers(4), &staller{}, nodes...)
	d.read(t, nodes[1], "v", "secret")
	never(t, "a record went to strangers", func(context.Context) bool { return gang.stall.introduced.Load() > 0 })
}

// TestBitmapGrowers: bitmaps that grow for ever, of chunks that the root does not have,
// take no memory.
func TestBitmapGrowers(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "beta")
	i := look(t, nodes[0])
	victim := nodes[1]
	for k, c := range []struct {
		who     string
		signers []trust.Signer
	}{{"strangers", strangers(3)}, {"a member", i.gang(t, 1)}} {
		t.Run(c.who, func(t *testing.T) {
			d := newDisk(t, l.Dir, imageSize, byte(30+k))
			name := fmt.Sprintf("image%d", k)
			run(t, nodes[0], "image", "import", name, d.path)
			var grown atomic.Int64
			i.gather(t, l, c.signers, &staller{bitmaps: growing(&grown)}, nodes...)
			fromNow(t, victim)
			d.read(t, victim, "v-"+name, name)
			last, since := int64(-1), time.Now()
			within(t.Context(), 5*quietTime, func(context.Context) bool {
				if now := grown.Load(); now != last {
					last, since = now, time.Now()
				}
				return time.Since(since) > quietTime // no more of it is taken
			})
			t.Logf("%d MiB of bitmaps were taken", grown.Load()>>20)
			bounded(t, victim, residentMax)
			if s := statusOf(t, victim); s.Origin.State != "ok" || !s.Ready {
				t.Errorf("status: ready %v, origin %s", s.Ready, s.Origin.State)
			}
		})
	}
}

// floodMax is what announcements may cost, in bytes.
const floodMax = 32 << 20

// growth is how much of bitmaps is sent at most, in bytes.
const growth = 1 << 30

// growing sends bitmaps of ever other chunks, which take much memory.
func growing(sent *atomic.Int64) func(context.Context, func(*content.Bitmap) error) error {
	return func(ctx context.Context, send func(*content.Bitmap) error) error {
		const containers, of = 64, 1 << 16 // 8 KiB each
		var part content.Bitmap
		for at := uint64(0); ctx.Err() == nil && at+containers*of < 1<<32 && sent.Load() < growth; at += containers * of {
			part = content.Bitmap{}
			for c := range uint64(containers) {
				for i := uint64(0); i < of; i += 2 + i&1 + i>>3&1 {
					part.Add(at + c*of + i)
				}
			}
			if err := send(&part); err != nil {
				return err
			}
			sent.Add(containers * of / 8)
		}
		<-ctx.Done()
		return nil
	}
}

// TestProviderFlood: announcements of keys that nobody asked for take no memory,
// whether strangers or a member make them.
func TestProviderFlood(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha")
	i := look(t, nodes[0])
	at := outside(t, l)
	for _, c := range []struct {
		who    string
		signer trust.Signer
	}{{"a stranger", stranger()}, {"a member", i.node(t, "beta")}} {
		t.Run(c.who, func(t *testing.T) {
			h := i.enter(t, at, c.signer, conduct{server: &staller{}, answerer: claims{farm: "beta"}})
			h.visit(t, nodes...)
			if len(c.signer.Chain) > 0 {
				h.prove(t, nodes...)
			} // else it is careful not to show that it has none
			before, _ := resident(t, nodes[0])
			fromNow(t, nodes[0])
			floods := soak.Of(120_000, 1_000_000)
			var wg sync.WaitGroup
			var sent atomic.Int64
			ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
			defer cancel()
			for range 8 {
				wg.Go(func() {
					n, err := i.provide(ctx, h, infoOf(t, nodes[0]).ID, func(n int) []byte {
						if n >= floods/8 {
							return nil
						}
						return content.CID(randomBytes(content.CIDSize)).CID().Hash()
					})
					sent.Add(int64(n))
					if err != nil {
						t.Logf("the flood is cut short after %d: %v", n, err)
					}
				})
			}
			wg.Wait()
			t.Logf("%d keys were announced; before: %d MiB", sent.Load(), before>>20)
			bounded(t, nodes[0], before+floodMax)
		})
	}
}

// TestEchoedCommit: a node that can't reach its origin, and whose only neighbour says of
// all that it is to write that it has, takes nothing for written.
func TestEchoedCommit(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	founder, err := l.Start(t.Context(), "alpha", store.URL)
	if err != nil {
		t.Fatal(err)
	}
	i := look(t, founder)
	at := outside(t, l)
	victim, err := l.Start(t.Context(), "gamma", store.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(founder.Stop(), store.Stop()); err != nil {
		t.Fatal(err)
	}
	for k, signer := range []trust.Signer{stranger(), i.node(t, "beta")} {
		t.Run(fmt.Sprintf("%q", signer.Chain.Identity().Farm), func(t *testing.T) {
			h := i.enter(t, at, signer, conduct{server: &staller{}, answerer: &echoer{signer: signer}})
			h.visit(t, victim)
			if len(signer.Chain) > 0 {
				h.prove(t, victim)
			}
			ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
			defer cancel()
			name := fmt.Sprintf("v%d", k)
			out, err := victim.Run(ctx, "volume", "create", name, "--size", "1MiB")
			t.Logf("create: %v: %s", err, out)
			var v api.Volume
			if err := victim.Get(ctx, "/api/volumes/"+name, &v); err == nil && v.State == "attached" {
				t.Errorf("a volume that is written nowhere is %s", v.State)
			}
			var r api.Resolved
			if err := victim.Get(ctx, "/api/resolve/volume:"+name, &r); err == nil && r.Confirmed {
				t.Error("a volume that is written nowhere is confirmed")
			}
		})
	}
}

// TestGossiperWithoutCertificate: who has the key of a farm's gossip, and no
// certificate, is not listed, and leads nothing.
func TestGossiperWithoutCertificate(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "alpha")
	i := look(t, nodes[0])
	_, c := steal(t, nodes[1])
	d := newDisk(t, l.Dir, imageSize, 40)
	run(t, nodes[0], "image", "import", "image", d.path)
	at, err := l.Net.Host(t.Context(), "alpha")
	if err != nil {
		t.Fatal(err)
	}
	h := i.enter(t, at, stranger(), conduct{mute: true})
	gossip(t, h, "alpha", c.Secrets.Gossip, nodes...)
	never(t, "a gossiper without certificate is listed", func(ctx context.Context) bool {
		return listed(ctx, nodes[0], h.ID().String()) || listed(ctx, nodes[1], h.ID().String())
	})
	d.read(t, nodes[1], "v", "image")
}

// listed reports whether a node names somebody as a member of its farm.
func listed(ctx context.Context, n *lab.Node, id string) bool {
	s, err := n.Status(ctx)
	for _, p := range s.Farm {
		if p.ID == id && err == nil {
			return true
		}
	}
	var peers api.Peers
	err = n.Get(ctx, "/api/peers", &peers)
	for _, p := range peers.Peers {
		if p.ID == id && p.State == "alive" && err == nil {
			return true
		}
	}
	return false
}
