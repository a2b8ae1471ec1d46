package holders

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

// node is a member on a real host, with a store.
type node struct {
	exchange.Peer
	x     *exchange.Exchange
	store *Store
	farm  *Farm
	stop  func()
}

// newNodes starts members of one farm that know each other's addresses.
func newNodes(t testing.TB, n int) (all []*node) {
	mesh := trust.NewPrivateKey()
	var addrs []peer.AddrInfo
	for range n {
		key := trust.NewPrivateKey()
		private, _, err := crypto.GenerateEd25519Key(bytes.NewReader(key.Seed()))
		if err != nil {
			t.Fatal(err)
		}
		h, err := libp2p.New(libp2p.Identity(private), libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New),
			libp2p.DisableRelay(), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleNode, Farm: "north"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		m := &node{Peer: exchange.Peer{ID: h.ID(), Identity: chain.Identity()}}
		if m.store, err = Open(StoreConfig{Dir: t.TempDir(), Farm: "north"}); err != nil {
			t.Fatal(err)
		}
		m.x, err = exchange.New(exchange.Config{Host: h, Ledger: identity.New(trust.NewVerifier(mesh.Public()), time.Now), Chain: chain, Holder: m.store})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if err := h.Connect(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
		addrs = append(addrs, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.x.Run(ctx) }()
		m.stop = sync.OnceFunc(func() { cancel(); <-done; _ = m.store.Close() })
		t.Cleanup(m.stop)
		m.farm = &Farm{Lane: Near{m.x, m.store, m.Peer}, Self: m.Identity.Key, Fills: make(chan struct{}, FillsMax), Log: slog.New(slog.DiscardHandler)}
		all = append(all, m)
	}
	for i, m := range all {
		m.farm.Live = func() (out []trust.PublicKey) {
			for j, o := range all {
				if i != j {
					out = append(out, o.Identity.Key)
				}
			}
			return out
		}
	}
	return all
}

// record is the record of one volume, written over what is known.
type record struct {
	mu   sync.Mutex
	body catalog.Volume
	lost error // of whoever wants to write it

	never  func(catalog.Volume) bool // what it is never to say
	broken bool                      // it did
}

func (r *record) get() catalog.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.body
}

func (r *record) revise(_ context.Context, change func(*catalog.Volume) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost != nil {
		return r.lost
	}
	err := change(&r.body)
	r.broken = r.broken || r.never != nil && r.never(r.body)
	return err
}

// serve opens a volume of a node, with its flushes held.
func (m *node) serve(t testing.TB, dir string, r *record) (*volume.Volume, *Guard) {
	body := r.get()
	g := m.farm.Guard(Owner{
		Name: func() string { return "web1" }, Record: func() (catalog.Volume, bool) { return r.get(), true }, Revise: r.revise, Owned: func(context.Context) error { return nil }, Joined: func() error { return nil },
	})
	v, err := volume.Open(volume.Config{Dir: dir, ID: body.ID, Epoch: body.Epoch, Size: body.Size, Persist: g.Persist, Followed: true, Advanced: g.Advanced, SegmentSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	g.Begin(v)
	return v, g
}

func created(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), "volume")
	if err := volume.Create(dir, theVolume); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestPolicyChangesInAFlush: a flush that begins under origin, and while it looks for whom
// to ask the policy becomes farm:1, is not acknowledged with nobody asked.
func TestPolicyChangesInAFlush(t *testing.T) {
	policies := []string{catalog.PolicyOrigin, "farm:1"}
	looks := 0
	g := (&Farm{}).Guard(Owner{
		Record: func() (catalog.Volume, bool) {
			looks++
			return catalog.Volume{Policy: policies[min(looks, len(policies))-1]}, true
		},
		Origin: func(context.Context, content.Position) error { return nil },
	})
	if err := g.Persist(t.Context(), content.Position{Number: 1, Seq: 1}); err == nil {
		t.Error("it is acknowledged, and neither the origin nor a holder was asked")
	}
}

// TestRealVolumeIsInherited: a volume writes through the lane to two holders on real hosts,
// over several segments; its node goes, one of the holders inherits, and what it adopts
// reads as it was flushed. So it does once more, from who came in place of the first.
func TestRealVolumeIsInherited(t *testing.T) {
	all := newNodes(t, 5)
	r := &record{body: catalog.Volume{ID: theVolume, Size: 8 << 20, Epoch: 1, Incarnation: 11, Policy: "farm:2"}}
	dir, at := created(t), 0
	random := rand.New(rand.NewPCG(5, 6))
	want := make([]byte, r.body.Size)
	for range 3 {
		v, g := all[at].serve(t, dir, r)
		for range 40 {
			off := random.Int64N(r.body.Size/4096-32) * 4096
			p := want[off:][:4096*(1+random.IntN(31))]
			for i := range p {
				p[i] = byte(random.Uint32())
			}
			if err := v.WriteAt(t.Context(), p, off, true); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(want))
		if err := v.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("before the end of epoch %d: %v, equal %v", r.body.Epoch, err, bytes.Equal(got, want))
		}
		if st, ok := g.Status(); !ok || len(st.Holders) != 2 || st.Degraded || st.Short {
			t.Fatalf("%+v", st)
		}
		holders := r.get().Holders
		g.Close()
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		all[at].stop()
		at = slices.IndexFunc(all, func(m *node) bool { return m.Identity.Key == holders[0] })
		if r.body.Epoch == 3 {
			return
		}
		dir = inherit(t, all[at], r)
	}
}

// inherit has a node take the volume over, and returns its folder.
func inherit(t *testing.T, m *node, r *record) string {
	body := r.get()
	in, err := m.farm.Inherit(t.Context(), "web1", body, body.Incarnation+1, filepath.Join(t.TempDir(), "inherited"))
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Segments) < 2 || len(in.Holders) == 0 || slices.Contains(in.Holders, m.Identity.Key) {
		t.Fatalf("inherited %+v", in)
	}
	dir := created(t)
	if err := journal.Adopt(dir, theVolume, in.Segments, func(string) {}); err != nil {
		t.Fatal(err)
	}
	err = r.revise(t.Context(), func(v *catalog.Volume) error {
		v.Epoch, v.Incarnation, v.Holders = in.Epoch, body.Incarnation+1, in.Holders
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// BenchmarkFlush is a write of 4 KiB and its flush: on this disk alone, and with two
// holders on loopback, whose disk is the same.
func BenchmarkFlush(b *testing.B) {
	for _, policy := range []string{"local", "farm:2"} {
		b.Run(policy, func(b *testing.B) {
			all := newNodes(b, 3)
			r := &record{body: catalog.Volume{ID: content.VolumeID{1, 2, 3}, Size: 64 << 20, Epoch: 1, Incarnation: 11, Policy: policy}}
			v, g := all[0].serve(b, created(b), r)
			defer func() { g.Close(); v.Close() }()
			p := make([]byte, 4096)
			write := func(i int) {
				if err := v.WriteAt(b.Context(), p, int64(i%16384)*4096, true); err != nil {
					b.Fatal(err)
				}
			}
			write(0) // the holders are filled
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				begun := time.Now()
				write(i)
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// gatedLane lets nothing pass until it is open.
type gatedLane struct {
	Lane
	open chan struct{}
}

func (l gatedLane) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	<-l.open
	return l.Lane.Ask(ctx, to, m)
}

// TestDiskThatWasRolledBack: a disk that is an older copy, and is written to before its
// holders are asked, is found out all the same: its flushes fail, and nobody comes in the
// place of those who have more.
func TestDiskThatWasRolledBack(t *testing.T) {
	all := newNodes(t, 4)
	r := &record{body: catalog.Volume{ID: theVolume, Size: 8 << 20, Epoch: 1, Incarnation: 11, Policy: "farm:2"}}
	dir, old := created(t), filepath.Join(t.TempDir(), "volume")
	if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	v, g := all[0].serve(t, dir, r)
	write := func(v *volume.Volume, with byte, flush bool) error {
		return v.WriteAt(t.Context(), bytes.Repeat([]byte{with}, 4096), 0, flush)
	}
	for range 5 {
		if err := write(v, 1, true); err != nil {
			t.Fatal(err)
		}
	}
	g.Close()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	r.body.Epoch, r.body.Incarnation = 2, 12
	before := r.get().Holders
	lane := gatedLane{all[0].farm.Lane, make(chan struct{})}
	all[0].farm.Lane = lane
	v, g = all[0].serve(t, old, r)
	for range 50 {
		if err := write(v, 2, false); err != nil {
			t.Fatal(err)
		}
	}
	close(lane.open)
	if err := v.Flush(t.Context()); !errors.Is(err, content.ErrFenced) {
		t.Errorf("a flush of a disk that was rolled back: %v", err)
	}
	if now := r.get().Holders; !slices.Equal(now, before) {
		t.Errorf("its holders are %v now, and were %v", now, before)
	}
	g.Close()
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

// TestNobodyElseIsHere: who has inherited a volume, and has found no other member yet, says
// what that takes.
func TestNobodyElseIsHere(t *testing.T) {
	x := &heir{Farm: &Farm{Live: func() []trust.PublicKey { return nil }}, k: 1}
	if _, err := x.spread(t.Context(), nil); !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "try again") || strings.Contains(err.Error(), "%!") {
		t.Error(err)
	}
}
