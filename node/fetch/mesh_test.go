package fetch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is how long a test waits for what must happen.
const deadline = 60 * time.Second

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// counted is a bucket that counts what is read from it, and can damage it.
type counted struct {
	bucket.Bucket
	requests, bytes atomic.Int64

	mu    sync.Mutex // guards what follows
	flip  pack.Location
	stuck chan struct{} // while set, reads wait for it to be closed
}

func (b *counted) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	b.mu.Lock()
	flip, stuck := b.flip, b.stuck
	b.mu.Unlock()
	if stuck != nil {
		select {
		case <-stuck:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	b.requests.Add(1)
	o, err := b.Bucket.Get(ctx, key, r)
	if err != nil {
		return nil, err
	}
	defer o.Body.Close()
	body, err := io.ReadAll(o.Body)
	if err != nil {
		return nil, err
	}
	b.bytes.Add(int64(len(body)))
	if at := int64(flip.Offset) + 100 - r.Offset; !flip.IsZero() && flip.Pack.Key() == key && at >= 0 && at < int64(len(body)) {
		body[at] ^= 1
	}
	o.Body = io.NopCloser(bytes.NewReader(body))
	return o, nil
}

// image is what an origin holds.
type image struct {
	head   pack.Head
	chunks map[uint64]content.Verified
	stored int64 // bytes of its packs
}

// mesh is the members of a test, and the origin and the announcements that they
// share.
type mesh struct {
	key    trust.PrivateKey
	bucket *counted
	mu     sync.Mutex // guards what follows
	board  map[swarm.Key][]peer.AddrInfo
	banned []peer.ID
}

func newMesh(t testing.TB) *mesh {
	b, err := dir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &mesh{key: trust.NewPrivateKey(), bucket: &counted{Bucket: b}, board: map[swarm.Key][]peer.AddrInfo{}}
}

// build stores an image of so many random chunks, every third a hole, in two
// leaves of the map.
func (m *mesh) build(t testing.TB, scope content.Scope, chunks int) image {
	t.Helper()
	const gap = content.MapFanout - 64 // the first leaf ends in the midst of the chunks
	img := image{chunks: map[uint64]content.Verified{}}
	b, err := pack.NewBuilder(t.Context(), pack.BuilderConfig{Bucket: m.bucket.Bucket, Scope: scope, Size: int64(gap+2*chunks) * content.ChunkSizeDefault})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	random := rand.NewChaCha8([32]byte{1})
	index := uint64(0)
	for n := range chunks {
		if n == 64 {
			index = gap
		}
		raw := make([]byte, content.ChunkSizeDefault)
		random.Read(raw)
		if err := b.Add(t.Context(), index, raw); err != nil {
			t.Fatal(err)
		}
		img.chunks[index] = content.Seal(raw)
		index++
		if n%3 == 0 {
			index++
		}
	}
	head, stats, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	img.head, img.stored = head, int64(stats.UploadedBytes)
	return img
}

// node is one member of a test.
type node struct {
	*Fetcher
	t        testing.TB
	mesh     *mesh
	identity trust.Identity
	key      trust.PrivateKey
	swarm    *swarm.Swarm
	exchange *exchange.Exchange
	dir      string

	mu     sync.Mutex // guards what follows
	live   []peer.ID
	origin Origin

	stop func() // ends its exchange, its fetcher and its host
}

// options change a member before it starts.
type options struct {
	role     trust.Role // "" is node, "stranger" has no certificate
	noOrigin bool
	serve    func(*Fetcher) exchange.Server
}

// Live implements Members.
func (m *node) Live() []peer.ID { m.mu.Lock(); defer m.mu.Unlock(); return slices.Clone(m.live) }

// Call answers with the farm's name.
func (m *node) Call(context.Context, exchange.Peer, string, []byte) ([]byte, error) {
	return []byte(m.identity.Farm), nil
}

// board is the DHT as one member sees it.
type board struct {
	*mesh
	of *node
}

func (b board) Announce(k swarm.Key) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.board[k] = append(b.board[k], b.of.info())
	return nil
}

func (b board) Withdraw(k swarm.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.board[k] = slices.DeleteFunc(b.board[k], func(i peer.AddrInfo) bool { return i.ID == b.of.swarm.ID() })
}

func (b board) Find(_ context.Context, k swarm.Key) iter.Seq[peer.AddrInfo] {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := slices.Clone(b.board[k])
	return func(yield func(peer.AddrInfo) bool) {
		for _, info := range found {
			if info.ID != b.of.swarm.ID() {
				b.of.swarm.Learn(info)
				if !yield(info) {
					return
				}
			}
		}
	}
}

func (b board) Ban(id peer.ID, _ time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.banned = append(b.banned, id)
}

func (b board) announced(k swarm.Key) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.board[k])
}

func (m *node) info() peer.AddrInfo {
	return peer.AddrInfo{ID: m.swarm.ID(), Addrs: m.swarm.Host().Addrs()}
}

// start runs a member. It sees itself alone until the mesh is told to meet.
func (ms *mesh) start(t testing.TB, farm string, o options) *node {
	t.Helper()
	m := &node{t: t, mesh: ms, key: trust.NewPrivateKey(), dir: t.TempDir()}
	var chain trust.Chain
	role := o.role
	if role == "" {
		role = trust.RoleNode
	}
	if role != "stranger" {
		c, err := trust.Signer{Key: ms.key}.Issue(trust.Grant{Subject: m.key.Public(), Role: role, Farm: farm}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		chain, m.identity = c, c.Identity()
	}
	var err error
	if m.swarm, err = swarm.New(swarm.Config{Identity: m.key, Mesh: ms.key.Public(), Listen: []string{"/ip4/127.0.0.1/tcp/0"}}); err != nil {
		t.Fatal(err)
	}
	if err := m.swarm.Listen(); err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(cache.Config{Dir: m.dir, Quota: 300 << 20, ScrubRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	m.live = []peer.ID{m.swarm.ID()}
	if !o.noOrigin {
		m.origin = pack.NewReader(ms.bucket)
	}
	verifier := trust.NewVerifier(ms.key.Public())
	m.Fetcher, err = New(Config{
		Cache: c, Members: m, Swarm: board{ms, m}, Self: m.swarm.ID(), Identity: m.identity, Verifier: verifier,
		Origin: func() Origin { m.mu.Lock(); defer m.mu.Unlock(); return m.origin },
	})
	if err != nil {
		t.Fatal(err)
	}
	var server exchange.Server = m.Fetcher
	if o.serve != nil {
		server = o.serve(m.Fetcher)
	}
	m.exchange, err = exchange.New(exchange.Config{Host: m.swarm.Host(), Verifier: verifier, Chain: chain, Server: server, Answerer: m})
	if err != nil {
		t.Fatal(err)
	}
	m.Connect(m.exchange)
	m.run(t, c)
	return m
}

// run starts the parts of a member, and has them end in order.
func (m *node) run(t testing.TB, c *cache.Cache) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, part := range []func(context.Context) error{m.exchange.Run, m.Fetcher.Run} {
		wg.Go(func() {
			if err := part(ctx); err != nil {
				t.Errorf("%s: %v", m.swarm.ID(), err)
			}
		})
	}
	host, closeHost := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.swarm.Run(host) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		closeHost()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(m.stop)
}

// sees tells members that these are the live ones of their farm.
func sees(members ...*node) {
	var ids []peer.ID
	for _, m := range members {
		ids = append(ids, m.swarm.ID())
	}
	for _, m := range members {
		for _, other := range members {
			if other != m {
				m.swarm.Learn(other.info())
			}
		}
		m.mu.Lock()
		m.live = ids
		m.mu.Unlock()
	}
}

// farm starts n members that see each other and have learned the image.
func (ms *mesh) farm(t testing.TB, name string, n int, img image) []*node {
	t.Helper()
	var out []*node
	for range n {
		m := ms.start(t, name, options{})
		m.learn(img)
		out = append(out, m)
	}
	sees(out...)
	return out
}

// learn makes a root known and opens it.
func (m *node) learn(img image) *Image {
	m.t.Helper()
	id, err := m.Learn(Root{Head: img.head})
	if err != nil {
		m.t.Fatal(err)
	}
	i, err := m.Open(id)
	if err != nil {
		m.t.Fatal(err)
	}
	return i
}

// warm has members bring in the whole image at once.
func warm(t testing.TB, img image, members ...*node) {
	t.Helper()
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() {
			if err := m.learn(img).Warm(within(t, deadline), nil); err != nil {
				t.Errorf("member %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// check compares what members read with the image; they read as guests do, in
// parallel, each reader its own part.
func check(t testing.TB, img image, readers int, members ...*node) {
	t.Helper()
	indexes := make([]uint64, 0, len(img.chunks))
	for index := range img.chunks {
		indexes = append(indexes, index)
	}
	slices.Sort(indexes)
	ctx := within(t, deadline)
	var wg sync.WaitGroup
	for n, m := range members {
		opened := m.learn(img)
		for part := range readers {
			wg.Go(func() {
				p := make([]byte, content.ChunkSizeDefault)
				for i := part; i < len(indexes); i += readers {
					if err := opened.readWhole(ctx, indexes[i], p, img); err != nil {
						t.Errorf("member %d: %v", n, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func (m *Image) readWhole(ctx context.Context, index uint64, p []byte, img image) error {
	if err := m.ReadChunk(ctx, index, 0, p); err != nil {
		return fmt.Errorf("chunk %d: %w", index, err)
	}
	if !bytes.Equal(p, img.chunks[index].Bytes()) {
		return fmt.Errorf("chunk %d: wrong bytes", index)
	}
	return nil
}

// took resets the origin's counters and returns them.
func (b *counted) took() (requests, bytes int64) { return b.requests.Swap(0), b.bytes.Swap(0) }

// files are those of its cache.
func (m *node) files() []string {
	names, err := filepath.Glob(filepath.Join(m.dir, "*"))
	if err != nil {
		m.t.Fatal(err)
	}
	return names
}
