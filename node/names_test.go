package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/simulations/mem"
)

const (
	// farmSize is how many nodes of a farm want a name at once, and nameReads how often
	// the origin may be asked for it by all of them.
	farmSize  = 40
	nameReads = 3
)

// counted counts the requests for the records of images that all nodes make of a store.
type counted struct {
	store bucket.Bucket
	reads atomic.Int64
	first atomic.Pointer[func(*inFarm)] // told once of the node that asks next
}

// counting is the store as one node sees it.
type counting struct {
	bucket.Bucket
	c    *counted
	node atomic.Pointer[inFarm]
}

// Get implements bucket.Bucket.
func (b *counting) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	if strings.HasPrefix(key, "records/image/") {
		b.c.reads.Add(1)
		if told := b.c.first.Swap(nil); told != nil {
			(*told)(b.node.Load())
			<-ctx.Done() // it never hears of the answer
		}
	}
	return b.Bucket.Get(ctx, key, r)
}

// inFarm is a real member of a farm but for its swarm and its gossip: it speaks the
// exchange's protocol with its neighbours, and sees those that live.
type inFarm struct {
	*Node
	host host.Host
	stop func()
}

// liveList is who is in the farm. Implements fetch.Members.
type liveList struct{ atomic.Pointer[[]peer.ID] }

// Live implements fetch.Members.
func (l *liveList) Live() []peer.ID { return *l.Load() }

func newInFarm(t *testing.T, c *counted, founder trust.Signer, mesh trust.PublicKey, live *liveList) *inFarm {
	t.Helper()
	key := trust.NewPrivateKey()
	chain, err := founder.Issue(trust.Identity{Key: key.Public(), Role: trust.RolePublisher, Farm: "alpha"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	view := &counting{Bucket: c.store, c: c}
	n := &Node{cfg: Config{Now: time.Now, Log: slog.New(slog.DiscardHandler)}, codec: content.NewCodec(), signer: trust.Signer{Key: key, Chain: chain}}
	n.Membership, err = membership.Open(membership.Config{Dir: t.TempDir(), Identity: key, Now: time.Now, Log: n.cfg.Log}, membership.State{Mesh: mesh, Chain: chain})
	if err != nil {
		t.Fatal(err)
	}
	n.verifier = n.Membership.Verifier()
	n.peers = identity.New(n.verifier, time.Now)
	origin, err := catalog.New(catalog.Config{Bucket: view, Verifier: n.verifier, Signer: n.signer})
	if err == nil {
		n.cache, err = cache.Open(cache.Config{Dir: t.TempDir()})
	}
	if err != nil {
		t.Fatal(err)
	}
	private, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(key.Seed()))
	if err != nil {
		t.Fatal(err)
	}
	x := &inFarm{Node: n}
	x.host, err = libp2p.New(
		libp2p.Identity(private), libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.DisableRelay(), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
	)
	if err != nil {
		t.Fatal(err)
	}
	n.fetch, err = fetch.New(fetch.Config{
		Cache: n.cache, Members: live, Self: x.host.ID(), Identity: n.Membership.Identity(), Verifier: n.verifier, Log: n.cfg.Log,
	})
	if err == nil {
		n.exchange, err = exchange.New(exchange.Config{Host: x.host, Ledger: n.peers, Chain: chain, Server: n.fetch, Answerer: answerer{n}, Log: n.cfg.Log})
	}
	if err != nil {
		t.Fatal(err)
	}
	reader := func() *catalog.Catalog { return origin }
	began := time.Now() // its clock stands: no lead is slow because the machine is
	n.Names, err = records.New(records.Config{
		Dir: t.TempDir(), Reader: reader, Writer: reader, Lost: func(error) {}, Verifier: n.verifier, Signer: n.signer,
		Ask:     func(context.Context, records.Question, int) []records.Answer { return nil },
		AskLead: n.askLead, Think: n.fetch.Think, Learn: func(records.Known) {}, Forget: n.fetch.Forget, Codec: n.codec, Now: func() time.Time { return began }, Log: n.cfg.Log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run errgroup.Group
	run.Go(func() error { return n.exchange.Run(ctx) })
	run.Go(func() error { return n.fetch.Run(ctx) })
	x.stop = sync.OnceFunc(func() { // as one that is killed: its connections end
		cancel()
		if err := errors.Join(x.host.Close(), run.Wait(), n.Names.Close(), n.cache.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(x.stop)
	view.node.Store(x)
	return x
}

// TestAFarmOpensOneName has the nodes of a farm resolve and open one new name at once: the
// origin is asked for its record by few of them. So it is for one that is not there; and
// where the first that reads it dies of it, and the others go on.
func TestAFarmOpensOneName(t *testing.T) {
	c, live := &counted{store: mem.New(t, mem.Config{})}, &liveList{}
	key := trust.NewPrivateKey()
	founded := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: founded}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "alpha"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t}
	var all []*inFarm
	var ids []peer.ID
	for range farmSize {
		x := newInFarm(t, c, trust.Signer{Key: key, Chain: chain}, founded.Public(), live)
		all, ids = append(all, x), append(ids, x.host.ID())
	}
	live.Store(&ids)
	for _, x := range all {
		for _, other := range all {
			x.host.Peerstore().AddAddrs(other.host.ID(), other.host.Addrs(), peerstore.PermanentAddrTTL)
		}
	}
	for _, name := range []string{"debian", "none", "dying"} { // farm-mates are connected, mostly
		var order []plan.Peer
		for _, id := range ids {
			order = append(order, plan.Peer(id))
		}
		for _, lead := range plan.Rank("image/"+name, order)[:nameReads] {
			for _, x := range all {
				if id := peer.ID(lead); id != x.host.ID() {
					m.await("connected", func() bool { _, err := x.exchange.Meet(t.Context(), id); return err == nil })
				}
			}
		}
	}
	open := func(name string, check func(x *inFarm, err error)) {
		t.Helper()
		c.reads.Store(0)
		var wg sync.WaitGroup
		for _, x := range all {
			wg.Go(func() {
				r, err := x.Names.Resolve(t.Context(), "image:"+name, true)
				if err == nil && !r.Confirmed {
					err = errors.New("it is not confirmed")
				}
				var k records.Known
				if err == nil {
					k, err = x.Names.Lookup(t.Context(), content.KindImage, name, false)
				}
				if err == nil {
					_, err = x.fetch.Learn(fetch.Root{Head: *k.Head, Lineage: k.Lineage, Envelope: k.Sealed})
				}
				check(x, err)
			})
		}
		wg.Wait()
		if reads := c.reads.Load(); reads > nameReads {
			t.Errorf("%s: %d requests for the record by %d nodes, want %d at most", name, reads, farmSize, nameReads)
		} else {
			t.Logf("%s: %d requests for the record by %d nodes", name, reads, farmSize)
		}
	}
	well := func(_ *inFarm, err error) {
		if err != nil {
			t.Error(err)
		}
	}
	publishAt(t, all[0].Node, c.store, "debian")
	open("debian", well)
	open("none", func(_ *inFarm, err error) {
		if !errors.Is(err, content.ErrNotFound) {
			t.Error(err)
		}
	})
	publishAt(t, all[0].Node, c.store, "dying")
	var dying atomic.Pointer[inFarm]
	dies := func(x *inFarm) {
		dying.Store(x)
		go x.stop()
	}
	c.first.Store(&dies)
	open("dying", func(x *inFarm, err error) {
		if err != nil && x != dying.Load() {
			t.Error(err)
		}
	})
}
