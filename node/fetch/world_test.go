package fetch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// errDown is what a bucket that is down answers.
var errDown = fmt.Errorf("connection refused: %w", content.ErrUnavailable)

// world is an origin and the members that share it. The members are real: libp2p
// hosts on loopback, exchanges, caches. Farms and announcements are told by the
// world, as gossip and the DHT would.
type world struct {
	t      testing.TB
	mesh   trust.PrivateKey
	secret [32]byte
	bucket *mem.Bucket
	hooks  hooks
	reader *pack.Reader
	hosts  []host.Host // for the next members; then they are made

	gets, got atomic.Int64 // requests to the origin for packs, and their bytes

	mu        sync.Mutex // guards what follows
	members   []*node
	announced map[swarm.Key][]peer.ID
}

// hooks change what the origin does while it is used.
type hooks struct {
	down atomic.Bool
	gone atomic.Bool // all objects are
	gate atomic.Pointer[chan struct{}]
	slow atomic.Int64                  // how long each read takes, in nanoseconds
	flip atomic.Pointer[pack.Location] // of a frame that has a bit flipped
}

// node is one member, as far as fetching goes.
type node struct {
	*fetch.Fetcher
	w        *world
	id       peer.ID
	farm     string
	host     host.Host
	dir      string // the cache's
	cache    *cache.Cache
	exchange *exchange.Exchange
	banned   sync.Map // of peer.ID
	origin   atomic.Bool
	gone     atomic.Bool               // out of the farm, for all others
	searches atomic.Int64              // for announcements
	sees     atomic.Pointer[[]peer.ID] // the farm as it sees it, if not as the world does
	stop     func()
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, mesh: trust.NewPrivateKey(), announced: map[swarm.Key][]peer.ID{}}
	w.bucket = mem.New(t, mem.Config{Fault: w.fault, Wait: w.wait})
	w.reader = pack.NewReader(counting{w.bucket, w})
	return w
}

func (w *world) fault(c mem.Call) mem.Fault {
	if c.Op == mem.Get && w.hooks.down.Load() {
		return mem.Fault{Err: errDown}
	}
	if c.Op == mem.Get && w.hooks.gone.Load() {
		return mem.Fault{Err: content.ErrNotFound}
	}
	return mem.Fault{}
}

func (w *world) wait(ctx context.Context, c mem.Call) error {
	if c.Op != mem.Get {
		return nil
	}
	if slow := time.Duration(w.hooks.slow.Load()); slow > 0 {
		wait := time.NewTimer(slow)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if gate := w.hooks.gate.Load(); gate != nil {
		select {
		case <-*gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// counting counts what is read of packs.
type counting struct {
	bucket.Bucket
	w *world
}

func (c counting) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	o, err := c.Bucket.Get(ctx, key, r)
	if err != nil || !strings.HasPrefix(key, "packs/") {
		return o, err
	}
	c.w.gets.Add(1)
	c.w.got.Add(r.Length)
	flip := c.w.hooks.flip.Load()
	if flip == nil || flip.Pack.Key() != key {
		return o, nil
	}
	defer o.Body.Close()
	b, err := io.ReadAll(o.Body)
	if at := int64(flip.Offset) + 100 - r.Offset; at >= 0 && at < int64(len(b)) {
		b[at] ^= 1
	}
	o.Body = io.NopCloser(bytes.NewReader(b))
	return o, err
}

// forget begins to count anew.
func (w *world) forget() { w.gets.Store(0); w.got.Store(0) }

// join starts a member of a farm.
func (w *world) join(farm string, change func(*fetch.Config)) *node {
	w.t.Helper()
	return w.enter(farm, trust.RoleNode, change, nil)
}

// farm starts n members of one.
func (w *world) farm(name string, n int) []*node {
	w.t.Helper()
	var out []*node
	for range n {
		out = append(out, w.join(name, nil))
	}
	return out
}

// enter starts a member, or with role "" a stranger; wrap may replace the server
// that others talk to.
func (w *world) enter(farm string, role trust.Role, change func(*fetch.Config), wrap func(exchange.Server) exchange.Server) *node {
	w.t.Helper()
	m := &node{w: w, farm: farm, host: w.newHost(), dir: w.t.TempDir()}
	m.id = m.host.ID()
	key, err := m.id.ExtractPublicKey()
	w.check(err)
	subject, err := key.Raw()
	w.check(err)
	m.origin.Store(true)
	verifier := trust.NewVerifier(w.mesh.Public())
	var chain trust.Chain
	var who trust.Identity
	if role != "" {
		chain, err = trust.Signer{Key: w.mesh}.Issue(trust.Identity{Key: trust.PublicKey(subject), Role: role, Farm: farm}, time.Now())
		w.check(err)
		who = chain.Identity()
	}
	m.cache, err = cache.Open(cache.Config{Dir: m.dir, Quota: 1 << 30, ScrubRate: -1})
	w.check(err)
	cfg := fetch.Config{
		Cache: m.cache, Members: m, Swarm: m, Origin: m.reader, Self: m.id, Identity: who, Verifier: verifier,
		Announce: func(content.Scope) [][32]byte { return [][32]byte{w.secret} }, Introduce: w.introduce, IOTimeout: ioTimeout,
	}
	if os.Getenv("GRANGE_DEBUG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("self", m.id)
	}
	if change != nil {
		change(&cfg)
	}
	m.Fetcher, err = fetch.New(cfg)
	w.check(err)
	server := exchange.Server(m.Fetcher)
	if wrap != nil {
		server = wrap(server)
	}
	m.exchange, err = exchange.New(exchange.Config{Host: m.host, Ledger: identity.New(verifier, time.Now), Chain: chain, Server: server})
	w.check(err)
	m.Connect(m.exchange)
	w.meet(m)
	m.run()
	return m
}

// ioTimeout is longer than any stall; a test that is about waiting has its own.
const ioTimeout = 20 * time.Second

// meet tells the member's host and all others of each other.
func (w *world) meet(m *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range w.members {
		other.host.Peerstore().AddAddrs(m.id, m.host.Addrs(), time.Hour)
		m.host.Peerstore().AddAddrs(other.id, other.host.Addrs(), time.Hour)
	}
	w.members = append(w.members, m)
}

func (m *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var parts errgroup.Group
	parts.Go(func() error { return m.exchange.Run(ctx) })
	parts.Go(func() error { return m.Fetcher.Run(ctx) })
	parts.Go(func() error { return m.cache.Run(ctx) })
	m.stop = sync.OnceFunc(func() {
		cancel()
		m.w.check(parts.Wait())
		m.w.check(m.host.Close())
	})
	m.w.t.Cleanup(m.stop)
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) newHost() host.Host {
	w.t.Helper()
	if len(w.hosts) > 0 {
		h := w.hosts[0]
		w.hosts = w.hosts[1:]
		return h
	}
	muxer := *yamux.DefaultTransport
	h, err := libp2p.New(
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, &muxer), libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
	)
	w.check(err)
	return h
}

// Live implements fetch.Members.
func (m *node) Live() []peer.ID {
	if sees := m.sees.Load(); sees != nil {
		return *sees
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	out := []peer.ID{m.id}
	for _, other := range m.w.members {
		if other != m && other.farm == m.farm && other.farm != "" && !other.gone.Load() {
			out = append(out, other.id)
		}
	}
	slices.Sort(out)
	return out
}

func (m *node) reader() fetch.Origin {
	if !m.origin.Load() || m.w.hooks.down.Load() {
		return nil
	}
	return m.w.reader
}

// Announce, Withdraw, Find and Ban implement fetch.Announcements.
func (m *node) Announce(k swarm.Key) error {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.w.announced[k] = append(m.w.announced[k], m.id)
	return nil
}

func (m *node) Withdraw(k swarm.Key) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.w.announced[k] = slices.DeleteFunc(m.w.announced[k], func(id peer.ID) bool { return id == m.id })
}

func (m *node) Find(_ context.Context, k swarm.Key) iter.Seq[peer.AddrInfo] {
	m.w.mu.Lock()
	ids := slices.Clone(m.w.announced[k])
	m.w.mu.Unlock()
	m.searches.Add(1)
	return func(yield func(peer.AddrInfo) bool) {
		for _, id := range ids {
			if !yield(peer.AddrInfo{ID: id}) {
				return
			}
		}
	}
}

// Peers returns those of the world.
func (m *node) Peers() (out []peer.AddrInfo) {
	for _, other := range m.w.members {
		out = append(out, peer.AddrInfo{ID: other.id})
	}
	return out
}

func (m *node) Ban(id peer.ID, _ time.Duration, _ string) { m.banned.Store(id, true) }

// leave takes the member out of the farm and stops it.
func (m *node) leave() {
	m.gone.Store(true)
	m.stop()
}

// image is one that was imported, and what it holds.
type image struct {
	fetch.Root
	id     content.CID
	chunks [][]byte // nil for a hole
	stats  build.Stats
}

// imageChunks make an image of a few packs and some ten runs; behind twoLeaves
// they lie in two leaves of the map.
const (
	imageChunks = 160
	twoLeaves   = content.MapFanout - imageChunks/2
)

// imageConfig says what to import.
type imageConfig struct {
	chunks int
	hole   int // so many chunks before them
	scope  content.Scope
	seed   uint64
	dense  bool // no holes, and bytes that don't compress
	// older shares its chunks with the image, but for every changed-th.
	older   *image
	changed int
}

// publish imports an image of random chunks with some holes.
func (w *world) publish(cfg imageConfig) *image {
	w.t.Helper()
	ctx := context.Background()
	size := int64(cfg.hole+cfg.chunks) * content.ChunkSizeDefault
	if cfg.scope.IsZero() {
		cfg.scope = content.Mesh()
	}
	im := &image{chunks: make([][]byte, cfg.hole+cfg.chunks)}
	bc := build.Config{Bucket: w.bucket, Scope: cfg.scope, Size: size, PackSize: 4 << 20}
	if cfg.older != nil {
		im.Lineage = []content.CID{cfg.older.id}
		known, err := index.Load(ctx, index.Config{Bucket: w.bucket, Scopes: []content.Scope{cfg.scope}, Dir: w.t.TempDir()})
		w.check(err)
		bc.Known, bc.Lineage = known, im.Lineage
	}
	b, err := build.New(ctx, bc)
	w.check(err)
	for i := range im.chunks {
		if i < cfg.hole || i%7 == 3 && !cfg.dense {
			continue
		}
		if cfg.older != nil && i%cfg.changed != 0 {
			im.chunks[i] = cfg.older.chunks[i]
		} else {
			im.chunks[i] = randomChunk(cfg.seed, i)
			if cfg.dense {
				copy(im.chunks[i][len(im.chunks[i])/2:], randomChunk(^cfg.seed, i))
			}
		}
		w.check(b.Add(ctx, uint64(i), im.chunks[i]))
	}
	im.Head, im.stats, err = b.Finish(ctx)
	w.check(err)
	root, err := im.Head.Root.Encode(content.NewCodec())
	w.check(err)
	im.id = root.CID()
	im.Envelope, err = content.NewCodec().Marshal(record{im.Head, im.Lineage})
	w.check(err)
	return im
}

// record stands for a signed one.
type record struct {
	Head    pack.Head
	Lineage []content.CID
}

func (w *world) introduce(envelope []byte) (fetch.Root, error) {
	var r record
	if err := content.NewCodec().Unmarshal(envelope, &r); err != nil {
		return fetch.Root{}, err
	}
	return fetch.Root{Head: r.Head, Lineage: r.Lineage, Envelope: envelope}, nil
}

// randomChunk compresses to about half.
func randomChunk(seed uint64, i int) []byte {
	rng := rand.NewChaCha8([32]byte(binary.BigEndian.AppendUint64(make([]byte, 24), seed<<32|uint64(i))))
	b := make([]byte, content.ChunkSizeDefault)
	rng.Read(b[:len(b)/2])
	return b
}

// open learns the image at a member and opens it.
func (m *node) open(im *image) *fetch.Image {
	m.w.t.Helper()
	out, err := m.Learn(im.Root)
	m.w.check(err)
	if out.ID() != im.id {
		m.w.t.Fatalf("the root is %s, want %s", out.ID(), im.id)
	}
	return out
}

// readAll reads the image as a guest does, chunk by chunk, and compares it.
func readAll(ctx context.Context, g *fetch.Image, im *image) error {
	p := make([]byte, content.ChunkSizeDefault)
	for i := range im.chunks {
		if err := readOne(ctx, g, im, i, p); err != nil {
			return err
		}
	}
	return nil
}

func readOne(ctx context.Context, g *fetch.Image, im *image, i int, p []byte) error {
	if err := g.ReadChunk(ctx, uint64(i), 0, p); err != nil {
		return fmt.Errorf("chunk %d: %w", i, err)
	}
	want := im.chunks[i]
	if want == nil {
		want = make([]byte, len(p))
	}
	if !bytes.Equal(p, want) {
		return fmt.Errorf("chunk %d: other bytes", i)
	}
	return nil
}

// all runs do for each member at once.
func all(members []*node, do func(m *node) error) error {
	var g errgroup.Group
	for _, m := range members {
		g.Go(func() error { return do(m) })
	}
	return g.Wait()
}

// eventuallyMax is far more than anything takes, also where the machine is busy.
const eventuallyMax = 3 * time.Minute

// eventually waits until what holds.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	deadline := time.NewTimer(eventuallyMax)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			w.t.Fatalf("not within %s: %s", eventuallyMax, what)
		}
	}
}

var errCancelled = errors.New("the test has had enough")

const (
	// lateMost is how long nothing may run for a round to prove anything about what the
	// planner's waits bring about: less than half of the shortest, plan.FarmWait.
	lateMost = 100 * time.Millisecond
	// calmRounds bounds the rounds. With seven that want to run for each processor 18 of 18
	// held, so four that do not are no accident.
	calmRounds = 4
)

// calmly plays a round until one holds, and fails where none does, or one does not though
// the machine was never late: where it was, a wait of the planner may have ended before
// those that it waits for could answer, so the round is played again. In virtual time simulations/planner holds the
// same bars exactly.
func calmly(t *testing.T, round func() error) {
	t.Helper()
	for played := 1; ; played++ {
		ended, late := make(chan struct{}), make(chan time.Duration)
		go func() {
			tick := time.NewTicker(lateMost / 10)
			defer tick.Stop()
			most, last := time.Duration(0), time.Now()
			for {
				select {
				case <-tick.C:
					now := time.Now()
					most, last = max(most, now.Sub(last)), now
				case <-ended:
					late <- most
					return
				}
			}
		}()
		err := round()
		close(ended)
		switch most := <-late; {
		case err == nil:
			return
		case most < lateMost || played == calmRounds:
			t.Errorf("round %d, the machine was %s late: %v", played, most, err)
			return
		default:
			t.Logf("the machine was %s late: %v", most, err)
		}
	}
}
