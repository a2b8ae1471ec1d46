package exchange

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh issues certificates for the members of a test.
type mesh struct {
	key  trust.PrivateKey
	root content.CID
}

func newMesh() mesh { return mesh{trust.NewPrivateKey(), content.Sum([]byte("root"))} }

// member is one member of a test.
type member struct {
	*Exchange
	id         peer.ID
	host       host.Host
	violations chan error
	proved     atomic.Int32
	lost       atomic.Int32
	stop       func()
}

// newHost returns a host as farms use it: TCP, TLS, yamux, on loopback.
func newHost(t testing.TB, key trust.PrivateKey) host.Host {
	t.Helper()
	private, _, err := crypto.GenerateEd25519Key(bytes.NewReader(key.Seed()))
	if err != nil {
		t.Fatal(err)
	}
	muxer := *yamux.DefaultTransport
	h, err := libp2p.New(
		libp2p.Identity(private), libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, &muxer), libp2p.DisableRelay(), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func connect(t testing.TB, a, b host.Host) {
	t.Helper()
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

// start runs a member; role "" makes it a stranger.
func (m mesh) start(t testing.TB, role trust.Role, change func(*Config)) *member {
	t.Helper()
	key := trust.NewPrivateKey()
	h := newHost(t, key)
	cfg := Config{Host: h, Ledger: identity.New(trust.NewVerifier(m.key.Public()), time.Now)}
	if role != "" {
		farm := "north"
		chain, err := trust.Signer{Key: m.key}.Issue(trust.Identity{Key: key.Public(), Role: role, Farm: farm}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cfg.Chain = chain
	}
	b := &member{id: h.ID(), host: h, violations: make(chan error, 16)}
	cfg.OnViolation = func(id peer.ID, err error) {
		select {
		case b.violations <- fmt.Errorf("%s: %w", id, err):
		default:
		}
	}
	cfg.OnProved = func(peer.ID) { b.proved.Add(1) }
	cfg.OnLost = func(peer.ID) { b.lost.Add(1) }
	if change != nil {
		change(&cfg)
	}
	x, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Exchange = x
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(b.stop)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !slices.Contains(h.Mux().Protocols(), protocolID(m)) { // until it answers
		<-tick.C
	}
	return b
}

// library is a Server that has chunks in memory; parts of it can be replaced.
type library struct {
	root    content.CID
	chunks  map[uint64]content.Verified
	page    []byte
	dense   bool
	want    func(ctx context.Context, from Peer, req Request, w Responder)
	bitmaps func(ctx context.Context, send func(*content.Bitmap) error) error
	call    func(ctx context.Context, from Peer, method string, body []byte) ([]byte, error)

	mu         sync.Mutex
	introduced [][]byte
}

func newLibrary(root content.CID, chunks int) *library {
	l := &library{root: root, chunks: map[uint64]content.Verified{}}
	random := rand.NewChaCha8([32]byte{1})
	for i := range chunks {
		b := make([]byte, content.ChunkSizeDefault)
		random.Read(b)
		l.chunks[uint64(i)] = content.Seal(b)
	}
	return l
}

func (l *library) Want(ctx context.Context, from Peer, req Request, w Responder) {
	if l.want != nil {
		l.want(ctx, from, req, w)
		return
	}
	if req.Root != l.root {
		w.Unknown()
		return
	}
	for _, index := range req.Indexes {
		v, ok := l.chunks[index]
		if !ok {
			continue
		}
		if w.Data(ctx, index, Object{Body: v.Bytes(), Page: l.page, Dense: l.dense}) != nil {
			return
		}
	}
}

func (l *library) Introduce(_ context.Context, _ Peer, envelope []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.introduced = append(l.introduced, envelope)
	if string(envelope) == "bad" {
		return fmt.Errorf("introduce: %w", content.ErrForbidden)
	}
	return nil
}

func (l *library) Bitmaps(ctx context.Context, _ Peer, root content.CID, send func(*content.Bitmap) error) error {
	if root != l.root {
		return content.ErrNotFound
	}
	return l.bitmaps(ctx, send)
}

func (l *library) Call(ctx context.Context, from Peer, method string, body []byte) ([]byte, error) {
	return l.call(ctx, from, method, body)
}

func (l *library) serve(cfg *Config) { cfg.Server, cfg.Answerer = l, l }

// indexes returns n indexes from first on.
func indexes(first uint64, n int) []uint64 {
	out := make([]uint64, n)
	for i := range out {
		out[i] = first + uint64(i)
	}
	return out
}

// deadline is how long a test waits for what must happen: far more than anything takes,
// also where the machine is busy.
const deadline = 3 * time.Minute

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// pair starts a server of l and a member connected to it.
func (m mesh) pair(t testing.TB, l *library) (server, client *member) {
	t.Helper()
	server = m.start(t, trust.RoleNode, l.serve)
	client = m.start(t, trust.RoleNode, nil)
	connect(t, client.host, server.host)
	return server, client
}

func TestWantBringsEachIndexOnce(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 64)
	server, client := m.pair(t, l)
	for _, priority := range []Priority{PriorityGuest, PriorityReadahead, PriorityPrefetch, PrioritySeed} {
		asked := append(indexes(0, 64), 70, 71)
		answers := map[uint64]string{}
		err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: asked, Priority: priority}, func(r Reply) {
			switch r := r.(type) {
			case *Data:
				answers[r.Index] += "data"
				if _, err := content.Verify(l.chunks[r.Index].CID(), r.Body); err != nil {
					t.Errorf("%v: chunk %d: %v", priority, r.Index, err)
				}
			case Absent:
				for _, index := range r.Indexes {
					answers[index] += "absent"
				}
			}
		})
		if err != nil {
			t.Fatalf("%v: %v", priority, err)
		}
		for _, index := range asked {
			want := "data"
			if index >= 64 {
				want = "absent"
			}
			if answers[index] != want {
				t.Errorf("%v: index %d was answered %q, want %q", priority, index, answers[index], want)
			}
		}
	}
}

func TestMapNodesTravelWithTheirPages(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 0)
	l.page = []byte("where the children lie")
	node := content.Node{Level: 1, Entries: []content.CID{m.root}}.Encode()
	l.chunks[3] = node
	server, client := m.pair(t, l)
	var body, page []byte
	err := client.Want(within(t), server.id, Request{Root: m.root, Level: 1, Indexes: []uint64{3}, Priority: PriorityGuest}, func(r Reply) {
		d := r.(*Data)
		d.Take()
		body, page = d.Body, d.Page
	})
	if err != nil || !bytes.Equal(body, node.Bytes()) || !bytes.Equal(page, l.page) {
		t.Errorf("got %d bytes and page %q, %v", len(body), page, err)
	}
}

func TestUnknownRootAndReferEndTheRequest(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 4)
	server, client := m.pair(t, l)
	var got []Reply
	ask := func(root content.CID) error {
		got = nil
		return client.Want(within(t), server.id, Request{Root: root, Indexes: indexes(0, 4)}, func(r Reply) { got = append(got, r) })
	}
	if err := ask(content.Sum([]byte("another"))); err != nil || len(got) != 1 || got[0] != (Unknown{}) {
		t.Errorf("unknown root: %v, %v", got, err)
	}
	if err := client.Introduce(within(t), server.id, []byte("envelope")); err != nil || len(l.introduced) != 1 {
		t.Errorf("introduce: %q, %v", l.introduced, err)
	}
	if err := client.Introduce(within(t), server.id, []byte("bad")); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("introduce what is not allowed: %v", err)
	}
	l.want = func(_ context.Context, _ Peer, _ Request, w Responder) {
		w.Absent(0)
		w.Refer(client.id)
		if err := w.Absent(1); err == nil {
			t.Error("an answer after the end was taken")
		}
	}
	if err := ask(m.root); err != nil || len(got) != 2 || got[1].(Refer).Peer != client.id {
		t.Errorf("refer: %v, %v", got, err)
	}
}

// TestReferralsAreFollowed: a member asks another that it has never heard of.
func TestReferralsAreFollowed(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	busy, asker := m.pair(t, l)
	has := newLibrary(m.root, 1)
	other := m.start(t, trust.RoleNode, has.serve)
	connect(t, busy.host, other.host)
	l.want = func(_ context.Context, _ Peer, _ Request, w Responder) { w.Refer(other.id) }
	next := busy.id
	for _, want := range []peer.ID{busy.id, other.id} {
		if next != want {
			t.Fatalf("%s is asked, want %s", next, want)
		}
		err := asker.Want(within(t), next, Request{Root: m.root, Indexes: indexes(0, 1)}, func(r Reply) {
			if refer, ok := r.(Refer); ok {
				next = refer.Peer
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCallsKeepTheirErrors(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 0)
	l.call = func(_ context.Context, from Peer, method string, body []byte) ([]byte, error) {
		switch method {
		case "echo":
			return append([]byte(from.Identity.Farm+" "), body...), nil
		case "large":
			return make([]byte, 2<<20), nil
		}
		return nil, fmt.Errorf("%s: %w", method, content.ErrConflict)
	}
	server, client := m.pair(t, l)
	if got, err := client.Call(within(t), server.id, "echo", []byte("hello")); err != nil || string(got) != "north hello" {
		t.Errorf("echo: %q, %v", got, err)
	}
	if _, err := client.Call(within(t), server.id, "commit", nil); !errors.Is(err, content.ErrConflict) {
		t.Errorf("commit: %v, want ErrConflict", err)
	}
	if _, err := client.Call(within(t), server.id, "large", nil); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("an answer over the limit: %v, want ErrInvalid", err)
	}
	if _, err := server.Call(within(t), client.id, "echo", nil); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("a member that answers no calls: %v, want ErrNotFound", err)
	}
}

func TestBitmapsArriveAsTheyGrow(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 0)
	more := make(chan uint64)
	l.bitmaps = func(ctx context.Context, send func(*content.Bitmap) error) error {
		var b content.Bitmap
		for i := range uint64(300_000) { // large enough for several parts
			b.Add(i * 7)
		}
		for {
			if err := send(&b); err != nil {
				return err
			}
			select {
			case index := <-more:
				b = content.Bitmap{}
				b.Add(index)
			case <-ctx.Done():
				return nil
			}
		}
	}
	server, client := m.pair(t, l)
	var all content.Bitmap
	for b, err := range client.Bitmaps(within(t), server.id, m.root, 1<<22) {
		if err != nil {
			t.Fatal(err)
		}
		all.Union(b)
		if n := all.Len(); n == 300_002 {
			break
		} else if n < 300_000 {
			t.Fatalf("snapshot of %d", n)
		} else {
			more <- 1 + (n - 300_000)
		}
	}
	for _, err := range client.Bitmaps(within(t), server.id, content.Sum(nil), 1<<20) {
		if !errors.Is(err, content.ErrNotFound) {
			t.Errorf("bitmaps of an unknown root: %v", err)
		}
	}
	for _, err := range client.Bitmaps(within(t), server.id, m.root, 1<<20) {
		if !errors.Is(err, ErrViolation) {
			t.Errorf("a bitmap beyond the root's chunks: %v", err)
		}
	}
}

// TestBitmapsAreBounded: one that grows and grows, within the chunks of a huge root,
// is not kept, in parts or merged, and the connection goes on.
func TestBitmapsAreBounded(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	l.bitmaps = func(ctx context.Context, send func(*content.Bitmap) error) error {
		for base := uint64(0); ; base += 1 << 16 {
			var b content.Bitmap
			for i := range uint64(1 << 15) {
				b.Add((base + 2*i) % (1 << 32))
			}
			if err := send(&b); err != nil {
				return err
			}
		}
	}
	server, client := m.pair(t, l)
	var most int
	for range 2 { // the subscription ends alone
		var all content.Bitmap
		for b, err := range client.Bitmaps(within(t), server.id, m.root, 1<<32) {
			if err != nil {
				if !errors.Is(err, content.ErrNoSpace) {
					t.Errorf("it ended with %v, want ErrNoSpace", err)
				}
				break
			}
			most = max(most, b.Bytes())
			if all.Union(b); all.Bytes() > bitmapMax {
				break // the consumer's to bound
			}
		}
	}
	if most > bitmapMax {
		t.Errorf("%d bytes were merged", most)
	}
	if err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {}); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// TestInboxIsBounded whether its consumer looks or not.
func TestInboxIsBounded(t *testing.T) {
	b := &inbox{chunks: 1 << 32, ready: make(chan struct{}, 1)}
	part := wire.Bitmap{Part: make([]byte, 64<<10)}
	for range 1000 {
		if err := b.add(part); err != nil {
			t.Fatal(err)
		}
		if len(b.parts) > bitmapMax {
			t.Fatalf("%d bytes of parts are kept", len(b.parts))
		}
	}
	if _, err := b.drain(); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
}

// TestTakenDataStays: what a callback takes is its own until it gives it back, whatever
// comes meanwhile.
func TestTakenDataStays(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 64)
	server, client := m.pair(t, l)
	for range 3 {
		var taken []*Data
		err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: indexes(0, 64), Priority: PriorityPrefetch}, func(r Reply) {
			if d, ok := r.(*Data); ok && d.Index%3 > 0 {
				d.Take()
				taken = append(taken, d)
			}
		})
		if err != nil || len(taken) < 40 {
			t.Fatalf("took %d: %v", len(taken), err)
		}
		for _, d := range taken {
			if !bytes.Equal(d.Body, l.chunks[d.Index].Bytes()) {
				t.Errorf("chunk %d changed once it was taken", d.Index)
			}
			d.Free()
		}
	}
}
