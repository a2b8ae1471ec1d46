package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

const (
	testChunks = 96
	testCache  = 512 << 20
)

// farmOf is one farm in a process: members with real hosts and caches, and a
// store that counts what it sends.
type farmOf struct {
	t        *testing.T
	store    *bucket.Metrics
	root     fetch.Root
	id       content.CID
	data     [][]byte // nil is a hole
	stored   int64
	admin    trust.Signer
	verifier *trust.Verifier

	mu      sync.Mutex // guards live
	live    []peer.ID
	members []*member
}

type member struct {
	id    peer.ID
	swarm *swarm.Swarm
	fetch *fetch.Fetcher
	cache *cache.Cache
	stop  func()
}

func newFarm(t *testing.T, scope content.Scope) *farmOf {
	t.Helper()
	b, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key := trust.NewPrivateKey()
	mesh, chain, _, err := trust.FoundMesh(key.Public(), "a", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := &farmOf{t: t, store: bucket.WithMetrics(b), admin: trust.Signer{Key: key, Chain: chain}, verifier: trust.NewVerifier(mesh.Public())}
	builder, err := pack.NewBuilder(t.Context(), pack.BuilderConfig{Bucket: b, Scope: scope, Size: testChunks * content.ChunkSizeDefault})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.NewChaCha8([32]byte{9})
	for i := range uint64(testChunks) {
		var raw []byte
		if i%7 != 3 {
			raw = make([]byte, content.ChunkSizeDefault)
			rng.Read(raw)
			if err := builder.Add(t.Context(), i, raw); err != nil {
				t.Fatal(err)
			}
		}
		f.data = append(f.data, raw)
	}
	head, stats, err := builder.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.root, f.stored = fetch.Root{Head: head}, int64(stats.UploadedBytes)
	return f
}

// Live implements Members.
func (f *farmOf) Live() []peer.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]peer.ID(nil), f.live...)
}

// join starts a member; server replaces what it serves, for liars.
func (f *farmOf) join(origin bool, server func(*fetch.Fetcher) exchange.Server) *member {
	t := f.t
	t.Helper()
	key := trust.NewPrivateKey()
	chain, err := f.admin.Issue(trust.Grant{Subject: key.Public(), Role: trust.RoleNode, Farm: "a"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := swarm.New(swarm.Config{Identity: key, Mesh: f.verifier.Mesh(), Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(cache.Config{Dir: t.TempDir(), Quota: testCache, ScrubRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	packs := pack.NewReader(f.store)
	cfg := fetch.Config{Cache: c, Members: f, Self: s.ID(), Identity: chain.Identity(), Verifier: f.verifier}
	if origin {
		cfg.Origin = func() fetch.Origin { return packs }
	}
	ft, err := fetch.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	serves := exchange.Server(ft)
	if server != nil {
		serves = server(ft)
	}
	x, err := exchange.New(exchange.Config{Host: s.Host(), Verifier: f.verifier, Chain: chain, Server: serves})
	if err != nil {
		t.Fatal(err)
	}
	ft.Connect(x)
	m := &member{id: s.ID(), swarm: s, fetch: ft, cache: c}
	if f.id, err = ft.Learn(f.root); err != nil {
		t.Fatal(err)
	}
	f.start(m, x)
	return m
}

func (f *farmOf) start(m *member, x *exchange.Exchange) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{m.fetch.Run, x.Run, m.swarm.Run, m.cache.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				f.t.Error(err)
			}
		})
	}
	m.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	f.t.Cleanup(m.stop)
	for _, other := range f.members {
		for _, a := range other.swarm.Addrs() {
			info, err := swarm.ParseAddr(a)
			if err == nil {
				err = m.swarm.Connect(f.t.Context(), info)
			}
			if err != nil {
				f.t.Fatal(err)
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.live = append(f.live, m.id)
	f.members = append(f.members, m)
}

// read reads the whole image through a member, as guests do, and compares.
func (f *farmOf) read(m *member) error {
	image, err := m.fetch.Open(f.id)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, 8)
	for w := range errs {
		wg.Go(func() {
			p := make([]byte, content.ChunkSizeDefault)
			for i := next.Add(1) - 1; i < testChunks && errs[w] == nil; i = next.Add(1) - 1 {
				if errs[w] = image.ReadChunk(f.t.Context(), uint64(i), 0, p); errs[w] != nil {
					return
				}
				want := f.data[i]
				if want == nil {
					want = make([]byte, len(p))
				}
				if !bytes.Equal(p, want) {
					errs[w] = errors.New("other bytes")
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (f *farmOf) readAll(members []*member) {
	f.t.Helper()
	var wg sync.WaitGroup
	for _, m := range members {
		wg.Go(func() {
			if err := f.read(m); err != nil {
				f.t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestFarmReadsOnce: six cold members read all at once, from a store that sends
// everything once; a seventh that comes later takes nothing from it.
func TestFarmReadsOnce(t *testing.T) {
	f := newFarm(t, content.Mesh())
	for range 6 {
		f.join(true, nil)
	}
	f.readAll(f.members)
	sent := f.store.Counts().BytesIn
	if sent > f.stored*105/100 {
		t.Errorf("the store sent %d bytes, %.3f of what is stored", sent, float64(sent)/float64(f.stored))
	}
	f.readAll([]*member{f.join(true, nil)})
	if more := f.store.Counts().BytesIn - sent; more != 0 {
		t.Errorf("the seventh member took %d bytes from the store", more)
	}
}

// TestLostChunksComeFromTheFarm: what a member has lost, it has again from its
// neighbours. All read at once, so a member may be asked for a chunk at the moment
// in which it loses it; a fiftieth of the image allows for that.
func TestLostChunksComeFromTheFarm(t *testing.T) {
	f := newFarm(t, content.Mesh())
	for range 3 {
		f.join(true, nil)
	}
	f.readAll(f.members)
	sent := f.store.Counts().BytesIn
	for _, m := range f.members[:2] {
		if m.cache.Evict(16<<20) == 0 {
			t.Fatal("nothing was evicted")
		}
	}
	f.readAll(f.members)
	if more := f.store.Counts().BytesIn - sent; more > testChunks*content.ChunkSizeDefault/50 {
		t.Errorf("%d bytes came from the store although the farm had them", more)
	}
}

// TestNobodyHasIt: without a store and with nobody who has the image, a read
// fails soon, and says who was asked.
func TestNobodyHasIt(t *testing.T) {
	f := newFarm(t, content.Mesh())
	f.join(false, nil)
	f.join(false, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	image, err := f.members[0].fetch.Open(f.id)
	if err != nil {
		t.Fatal(err)
	}
	err = image.ReadChunk(ctx, 0, 0, make([]byte, 512))
	if !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "origin") {
		t.Errorf("%v; want ErrUnavailable that names the sources", err)
	}
}

// liar serves wrong bytes for every chunk, and right ones for the map.
type liar struct{ *fetch.Fetcher }

func (l liar) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	if req.Level > 0 {
		l.Fetcher.Want(ctx, from, req, w)
		return
	}
	for _, i := range req.Indexes {
		if w.Data(ctx, i, content.Seal(bytes.Repeat([]byte{6}, content.ChunkSizeDefault)), nil) != nil {
			return
		}
	}
}

// TestLiesReachNobody: a member that sends wrong bytes is set aside, and readers
// get right ones from elsewhere.
func TestLiesReachNobody(t *testing.T) {
	f := newFarm(t, content.Mesh())
	honest := f.join(true, nil)
	liar := f.join(true, func(ft *fetch.Fetcher) exchange.Server { return liar{ft} })
	if err := f.read(honest); err != nil {
		t.Fatal(err)
	}
	if _, aside := honest.fetch.Aside()[liar.id]; !aside {
		t.Error("the liar was not set aside")
	}
}

// TestScopeHidesRoots: a root of another farm is as unknown as one that never
// was.
func TestScopeHidesRoots(t *testing.T) {
	f := newFarm(t, content.Farm("b"))
	m := f.join(true, nil)
	w := &recorder{}
	id := trust.Identity{Role: trust.RoleNode, Farm: "a"}
	m.fetch.Want(t.Context(), exchange.Peer{Identity: id}, exchange.Request{Root: f.id, Indexes: []uint64{0}, Fetch: true}, w)
	m.fetch.Want(t.Context(), exchange.Peer{Identity: id}, exchange.Request{Root: content.Sum(nil), Indexes: []uint64{0}, Fetch: true}, w)
	if w.unknown != 2 || w.other != 0 {
		t.Errorf("%d unknown, %d other answers; want 2 and 0", w.unknown, w.other)
	}
	if err := m.fetch.Bitmaps(t.Context(), exchange.Peer{Identity: id}, f.id, nil); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("bitmap: %v, want ErrNotFound", err)
	}
}

type recorder struct{ unknown, other int }

func (r *recorder) Data(context.Context, uint64, content.Verified, []byte) error {
	r.other++
	return nil
}
func (r *recorder) Absent(...uint64) error { r.other++; return nil }
func (r *recorder) Queued(int) error       { r.other++; return nil }
func (r *recorder) Progress() error        { return nil }
func (r *recorder) Refer(peer.ID) error    { r.other++; return nil }
func (r *recorder) Unknown() error         { r.unknown++; return nil }

// TestWarmBringsAll fills a cache from a neighbour, and says from where.
func TestWarmBringsAll(t *testing.T) {
	f := newFarm(t, content.Mesh())
	full := f.join(true, nil)
	if err := f.read(full); err != nil {
		t.Fatal(err)
	}
	sent := f.store.Counts().BytesIn
	m := f.join(true, nil)
	image, err := m.fetch.Open(f.id)
	if err != nil {
		t.Fatal(err)
	}
	var got [4]int
	if err := image.Warm(t.Context(), func(s fetch.Source, n int) { got[s] += n }); err != nil {
		t.Fatal(err)
	}
	if got[fetch.FromFarm] == 0 || f.store.Counts().BytesIn != sent {
		t.Errorf("by source: %v; %d bytes from the store", got, f.store.Counts().BytesIn-sent)
	}
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if !image.TryReadChunk(0, 0, p) {
			t.Fatal("a chunk that was warmed is not here")
		}
	}); n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
}
