// Package swarm runs real members in one process, in simulated time, on a simulated
// network: the product's fetcher, its planner, its exchange and cache, over QUIC as libp2p
// has it. TCP has no simulated network, so all talk QUIC. Gossip and the DHT are told, as
// slowly as the tests of p2p/farm and simulations/planner say that they are.
package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
	"github.com/grangemesh/grange/simulations/mem"
)

const (
	// nodeRate is what a member's line carries each way, in bits a second; originRate is
	// that of the origin, in bytes.
	nodeRate   = 200e6
	originRate = 8 << 20
	// originTrip is how long the origin takes to answer; near and far how long packets are on
	// their way within a farm, and to another.
	originTrip = 30 * time.Millisecond
	near, far  = 200 * time.Microsecond, 15 * time.Millisecond
	// gossipLag is how long a farm needs to see that a member is dead, at most.
	gossipLag = 10 * time.Second
	// lookupMax is how long a look into the DHT takes, at most, and announcersMax what it finds.
	lookupMax, announcersMax = 200 * time.Millisecond, 20
	// packetSize is what QUIC fills a packet with, in bytes.
	packetSize = 1252
	// never is later than any test lasts: what is lost is on its way that long.
	never = 1000 * time.Hour
)

// world is an origin, a network, and the members on it.
type world struct {
	t      *testing.T
	mesh   trust.PrivateKey
	bucket *mem.Bucket
	reader *pack.Reader
	net    *simnet.Simnet
	line   *rate.Limiter // the origin's

	got  atomic.Int64 // bytes of packs that the origin has sent
	sick atomic.Int64 // how long each of its answers takes beside that, in nanoseconds
	down atomic.Bool  // it is

	mu        sync.Mutex // guards what follows
	random    *rand.Rand
	nodes     map[string]*node // by IP
	announced map[swarm.Key][]peer.ID
	loss      float64 // part of the packets
	cut       func(a, b *node) bool
}

// simulate runs f in a world of its own, in a bubble of time.
func simulate(t *testing.T, seed uint64, f func(w *world)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, mesh: trust.NewPrivateKey(), line: rate.NewLimiter(originRate, 1<<20), random: rand.New(rand.NewPCG(seed, 0)),
			nodes: map[string]*node{}, announced: map[swarm.Key][]peer.ID{}, cut: func(_, _ *node) bool { return false },
		}
		w.bucket = mem.New(t, mem.Config{Fault: w.fault, Wait: w.wait})
		w.reader = pack.NewReader(w.bucket)
		w.net = &simnet.Simnet{LatencyFunc: w.travel, Logger: slog.New(slog.DiscardHandler)}
		w.net.Start()
		defer w.net.Close()
		f(w)
		w.all(w.members(""), func(n *node) error { n.stop(); return nil })
	})
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) fault(c mem.Call) mem.Fault {
	if c.Op == mem.Get && w.down.Load() {
		return mem.Fault{Err: fmt.Errorf("connection refused: %w", content.ErrUnavailable)}
	}
	return mem.Fault{}
}

// wait holds up an answer of the origin as its line does, and counts it.
func (w *world) wait(ctx context.Context, c mem.Call) error {
	if c.Op != mem.Get {
		return nil
	}
	if strings.HasPrefix(c.Key, "packs/") {
		w.got.Add(c.Range.Length)
	}
	w.check(w.line.WaitN(context.Background(), int(min(c.Range.Length, int64(w.line.Burst())))))
	select {
	case <-time.After(originTrip + time.Duration(w.sick.Load())):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// travel is how long a packet is on its way.
func (w *world) travel(p *simnet.Packet) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	from, to := w.nodes[p.From.(*net.UDPAddr).IP.String()], w.nodes[p.To.(*net.UDPAddr).IP.String()]
	switch {
	case from == nil || to == nil || from.unplugged || to.unplugged || w.cut(from, to), w.loss > 0 && w.random.Float64() < w.loss:
		return never
	}
	took := far
	if from.farm == to.farm {
		took = near
	}
	if from.rate > 0 { // behind what it has sent before
		now := time.Now()
		if from.free.Before(now) {
			from.free = now
		}
		from.free = from.free.Add(time.Second * packetSize / time.Duration(from.rate))
		took += from.free.Sub(now)
	}
	return took
}

// node is one member, as far as fetching goes.
type node struct {
	*fetch.Fetcher
	w        *world
	id       peer.ID
	farm     string
	host     host.Host
	exchange *exchange.Exchange
	noOrigin bool
	banned   atomic.Int64
	image    *fetch.Image
	stop     func()

	// The world's mu guards what follows.
	unplugged bool
	gone      time.Time // when all others in its farm know it; zero while it lives
	rate      int       // bytes a second that it sends; 0 is as its line does
	free      time.Time // when it has sent all that it was given
}

// join starts a member of a farm; wrap, if not nil, replaces what others talk to.
func (w *world) join(farm string, wrap func(exchange.Server) exchange.Server) *node {
	w.t.Helper()
	w.mu.Lock()
	ip := simnet.IntToPublicIPv4(len(w.nodes))
	m := &node{w: w, farm: farm}
	w.nodes[ip.String()] = m
	w.mu.Unlock()
	link := simnet.LinkSettings{BitsPerSecond: nodeRate}
	var err error
	m.host, err = libp2p.New(
		libp2p.ListenAddrStrings(fmt.Sprintf("/ip4/%s/udp/8000/quic-v1", ip)), simlibp2p.QUICSimnet(w.net, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}),
		libp2p.DisableIdentifyAddressDiscovery(), libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}),
	)
	w.check(err)
	m.id = m.host.ID()
	key, err := m.id.ExtractPublicKey()
	w.check(err)
	subject, err := key.Raw()
	w.check(err)
	verifier := trust.NewVerifier(w.mesh.Public())
	chain, err := trust.Signer{Key: w.mesh}.Issue(trust.Identity{Key: trust.PublicKey(subject), Role: trust.RoleNode, Farm: farm}, time.Now())
	w.check(err)
	kept, err := cache.Open(cache.Config{Dir: w.t.TempDir(), Quota: 1 << 30, ScrubRate: -1})
	w.check(err)
	m.Fetcher, err = fetch.New(fetch.Config{
		Cache: kept, Members: m, Swarm: m, Origin: m.origin, Self: m.id, Identity: chain.Identity(), Verifier: verifier,
		Announce: func(content.Scope) [][32]byte { return make([][32]byte, 1) }, Introduce: introduce,
	})
	w.check(err)
	server := exchange.Server(m.Fetcher)
	if wrap != nil {
		server = wrap(server)
	}
	m.exchange, err = exchange.New(exchange.Config{Host: m.host, Ledger: identity.New(verifier, time.Now), Chain: chain, Server: server})
	w.check(err)
	m.Connect(m.exchange)
	for _, other := range w.members("") {
		other.host.Peerstore().AddAddrs(m.id, m.host.Addrs(), never)
		m.host.Peerstore().AddAddrs(other.id, other.host.Addrs(), never)
	}
	m.run(kept)
	return m
}

func (m *node) run(kept *cache.Cache) {
	ctx, cancel := context.WithCancel(context.Background())
	var parts errgroup.Group
	for _, part := range []func(context.Context) error{m.exchange.Run, m.Fetcher.Run, kept.Run} {
		parts.Go(func() error { return part(ctx) })
	}
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(parts.Wait(), m.host.Close()); err != nil {
			m.w.t.Error(err)
		}
	})
}

// farm starts n members of one.
func (w *world) farm(name string, n int) (out []*node) {
	w.t.Helper()
	for range n {
		out = append(out, w.join(name, nil))
	}
	return out
}

// members of a farm, or all, in the order of their ids.
func (w *world) members(farm string) (out []*node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.nodes {
		if n.id != "" && (farm == "" || n.farm == farm) {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b *node) int { return strings.Compare(string(a.id), string(b.id)) })
	return out
}

// all runs do for each member at once.
func (w *world) all(members []*node, do func(*node) error) {
	w.t.Helper()
	var g errgroup.Group
	for _, m := range members {
		g.Go(func() error { return do(m) })
	}
	if err := g.Wait(); err != nil {
		w.t.Error(err)
	}
}

// Live implements fetch.Members.
func (m *node) Live() (out []peer.ID) {
	now := time.Now()
	for _, o := range m.w.members(m.farm) {
		m.w.mu.Lock()
		if o == m || o.gone.IsZero() || o.gone.After(now) {
			out = append(out, o.id)
		}
		m.w.mu.Unlock()
	}
	return out
}

func (m *node) origin() fetch.Origin {
	if m.noOrigin || m.w.down.Load() {
		return nil
	}
	return m.w.reader
}

// unplug takes the member's cable out; its farm learns of it by gossip.
func (m *node) unplug() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.unplugged, m.gone = true, time.Now().Add(gossipLag)
}

// kill ends the member's process: its connections end. Its farm learns of it by gossip.
func (m *node) kill() {
	m.stop()
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.gone = time.Now().Add(gossipLag)
}

// slow has the member send so many bytes a second from now on.
func (m *node) slow(rate int) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.rate = rate
}

// Announce, Withdraw, Find, Peers and Ban implement fetch.Announcements.
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

func (m *node) Find(ctx context.Context, k swarm.Key) iter.Seq[peer.AddrInfo] {
	return func(yield func(peer.AddrInfo) bool) {
		m.w.mu.Lock()
		late := time.Duration(m.w.random.Int64N(int64(lookupMax)))
		m.w.mu.Unlock()
		select {
		case <-time.After(late):
		case <-ctx.Done():
			return
		}
		m.w.mu.Lock()
		ids := slices.Clone(m.w.announced[k])
		m.w.mu.Unlock()
		for _, id := range ids[:min(len(ids), announcersMax)] {
			if !yield(peer.AddrInfo{ID: id}) {
				return
			}
		}
	}
}

// Peers returns all others, those that are gone too.
func (m *node) Peers() (out []peer.AddrInfo) {
	for _, other := range m.w.members("") {
		if other != m {
			out = append(out, peer.AddrInfo{ID: other.id})
		}
	}
	return out
}

func (m *node) Ban(peer.ID, time.Duration, string) { m.banned.Add(1) }

// image is one that was imported, and what it holds.
type image struct {
	fetch.Root
	chunks [][]byte
	stored int64
}

// publish imports an image of so many chunks that don't compress.
func (w *world) publish(seed uint64, chunks int) *image {
	w.t.Helper()
	ctx := w.t.Context()
	im := &image{}
	im.stored = -w.packs()
	b, err := build.New(ctx, build.Config{Bucket: w.bucket, Scope: content.Mesh(), Size: int64(chunks) * content.ChunkSizeDefault, PackSize: 4 << 20})
	w.check(err)
	for i := range chunks {
		c := make([]byte, content.ChunkSizeDefault)
		rand.NewChaCha8([32]byte(binary.BigEndian.AppendUint64(make([]byte, 24), seed<<32|uint64(i)))).Read(c)
		im.chunks = append(im.chunks, c)
		w.check(b.Add(ctx, uint64(i), c))
	}
	im.Head, _, err = b.Finish(ctx)
	w.check(err)
	im.Envelope, err = content.NewCodec().Marshal(im.Head)
	w.check(err)
	im.stored += w.packs()
	w.got.Store(0)
	return im
}

// packs is how many bytes the origin holds of them.
func (w *world) packs() (n int64) {
	for o, err := range w.bucket.List(w.t.Context(), "packs/", "") {
		w.check(err)
		n += o.Size
	}
	return n
}

// introduce reads what stands for a record.
func introduce(envelope []byte) (r fetch.Root, err error) {
	r.Envelope = envelope
	return r, content.NewCodec().Unmarshal(envelope, &r.Head)
}

// open has members learn of an image.
func (w *world) open(im *image, members []*node) {
	w.t.Helper()
	for _, m := range members {
		var err error
		m.image, err = m.Learn(im.Root)
		w.check(err)
	}
}

// warm has the member fetch all of its image.
func (m *node) warm() error {
	if err := m.image.Warm(m.w.t.Context(), func(fetch.Source, int) {}); err != nil {
		return fmt.Errorf("%s of %s: %w", m.id, m.farm, err)
	}
	return nil
}

// holds reports whether the member has all of an image, as it was imported, without
// asking anybody.
func (m *node) holds(im *image) error {
	p, before := make([]byte, content.ChunkSizeDefault), m.image.Bytes()
	before.Cache += int64(len(im.chunks) * len(p))
	for i, want := range im.chunks {
		if err := m.image.ReadChunk(m.w.t.Context(), uint64(i), 0, p); err != nil || !bytes.Equal(p, want) {
			return fmt.Errorf("%s of %s: chunk %d has other bytes, or %w", m.id, m.farm, i, err)
		}
	}
	if now := m.image.Bytes(); now != before {
		return fmt.Errorf("%s of %s: %+v were read, want %+v", m.id, m.farm, now, before)
	}
	return nil
}

// guest reads the image in some order, with pauses as a guest makes them, and returns how
// long each read took, the longest last.
func (m *node) guest(im *image, pause time.Duration) (took []time.Duration, err error) {
	p := make([]byte, content.ChunkSizeDefault)
	for _, i := range rand.New(rand.NewPCG(uint64(len(m.id)), uint64(m.id[len(m.id)-1]))).Perm(len(im.chunks)) {
		begun := time.Now()
		if err := m.image.ReadChunk(m.w.t.Context(), uint64(i), 0, p); err != nil {
			return nil, fmt.Errorf("a guest on %s: %w", m.id, err)
		}
		if took = append(took, time.Since(begun)); !bytes.Equal(p, im.chunks[i]) {
			return nil, fmt.Errorf("a guest on %s: %w: chunk %d", m.id, content.ErrCorrupt, i)
		}
		<-time.After(pause)
	}
	slices.Sort(took)
	return took, nil
}

// liar is a server that sends wrong bytes of chunks.
type liar struct {
	exchange.Server
	sent atomic.Int64
}

func (l *liar) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	l.Server.Want(ctx, from, req, lying{w, l, req.Level == 0})
}

type lying struct {
	exchange.Responder
	l      *liar
	chunks bool
}

func (r lying) Data(ctx context.Context, index uint64, o exchange.Object) error {
	if r.chunks {
		o.Body = bytes.Clone(o.Body)
		o.Body[len(o.Body)/2] ^= 1
		r.l.sent.Add(1)
	}
	return r.Responder.Data(ctx, index, o)
}
