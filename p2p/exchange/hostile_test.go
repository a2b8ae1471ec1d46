package exchange

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/wire"
)

func protocolID(m mesh) protocol.ID { return protocol.ID(wire.ProtocolID(m.key.Public())) }

// script makes h a peer that speaks the protocol by hand: answer is called with
// each Want. The returned count is of streams opened to it.
func (m mesh) script(h host.Host, answer func(f *framed, id uint32, w wire.Want)) *atomic.Int32 {
	streams := new(atomic.Int32)
	h.SetStreamHandler(protocolID(m), func(s network.Stream) {
		defer s.Reset()
		streams.Add(1)
		f := newFramed(s, time.Second, new(atomic.Int64))
		hello, err := f.hello()
		if err != nil || f.send(0, m.hello(h, hello.Lane)) != nil {
			return
		}
		for {
			header, err := f.header()
			if err != nil {
				return
			}
			msg, err := f.message(header)
			if err != nil {
				return
			}
			if w, ok := msg.(wire.Want); ok {
				answer(f, header.ID, w)
			}
		}
	})
	return streams
}

// hello is what a member of the mesh on that host says first.
func (m mesh) hello(h host.Host, l wire.Lane) wire.Hello {
	public, err := h.ID().ExtractPublicKey()
	if err != nil {
		panic(err)
	}
	raw, err := public.Raw()
	if err != nil {
		panic(err)
	}
	return wire.Hello{Lane: l, Chain: chainOf(m.key, trust.PublicKey(raw))}
}

// data sends an object, whatever it is.
func data(f *framed, id uint32, d wire.Data, body []byte) {
	d.Raw, d.Stored = len(body), len(body)
	_ = f.sendData(id, d, Object{Body: body, Page: make([]byte, d.Page)}, nil, func(int) bool { return false })
}

func TestLyingPeerIsReported(t *testing.T) {
	body := make([]byte, 4096)
	for name, answer := range map[string]func(f *framed, id uint32, w wire.Want){
		"data that was not asked for": func(f *framed, id uint32, w wire.Want) { data(f, id, wire.Data{Index: 99}, body) },
		"data of another request":     func(f *framed, id uint32, w wire.Want) { data(f, id+1, wire.Data{}, body) },
		"the same data twice": func(f *framed, id uint32, w wire.Want) {
			data(f, id, wire.Data{}, body)
			data(f, id, wire.Data{}, body)
		},
		"a page for a chunk":         func(f *framed, id uint32, w wire.Want) { data(f, id, wire.Data{Page: 5}, body) },
		"absence that was not asked": func(f *framed, id uint32, w wire.Want) { f.send(id, wire.Absent{Indexes: []uint64{5}}) },
		"an answer to a want":        func(f *framed, id uint32, w wire.Want) { f.send(id, wire.Answer{}) },
		"a bitmap for a want":        func(f *framed, id uint32, w wire.Want) { f.send(id, wire.Bitmap{Last: true}) },
		"an asker's frame":           func(f *framed, id uint32, w wire.Want) { f.send(id, wire.Cancel{}) },
		"a referral to nobody":       func(f *framed, id uint32, w wire.Want) { f.send(id, wire.Refer{Peer: "nobody"}) },
		"a length over the limit": func(f *framed, id uint32, w wire.Want) {
			f.stream.Write(wire.Header{Type: wire.TypeData, ID: id, Length: 1 << 30}.Append(nil))
		},
		"garbage":                       func(f *framed, id uint32, w wire.Want) { f.stream.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
		"zstd that expands to too much": func(f *framed, id uint32, w wire.Want) { bomb(f, id) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh()
			liar := newHost(t, trust.NewPrivateKey())
			m.script(liar, answer)
			client := m.start(t, trust.RoleNode, nil)
			connect(t, client.host, liar)
			err := client.Want(within(t), liar.ID(), Request{Root: m.root, Indexes: []uint64{0, 1}}, func(Reply) {})
			if !errors.Is(err, ErrViolation) || !errors.Is(err, content.ErrUnavailable) {
				t.Errorf("got %v, want a violation", err)
			}
			if got := <-client.violations; !strings.Contains(got.Error(), liar.ID().String()) {
				t.Errorf("reported %v, want %s", got, liar.ID())
			}
		})
	}
}

// bomb sends a compressed body that is longer than it says.
func bomb(f *framed, id uint32) {
	c, err := newCodec()
	if err != nil {
		panic(err)
	}
	b := c.compress(make([]byte, 1<<20), link.Much)
	d := wire.Data{Raw: 8192, Stored: len(*b), Codec: wire.CodecZstd}
	_ = f.sendData(id, d, Object{Body: *b}, nil, func(int) bool { return true })
}

func TestLostConnectionFailsRequestsAtOnce(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	arrived := make(chan struct{})
	l.want = func(ctx context.Context, _ Peer, _ Request, w Responder) {
		close(arrived)
		w.Queued(0)
		<-ctx.Done()
	}
	server, client := m.pair(t, l)
	failed := make(chan error)
	go func() {
		failed <- client.Want(within(t), server.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {})
	}()
	<-arrived
	begun := time.Now()
	server.host.Close()
	if err := <-failed; !errors.Is(err, ErrDisconnected) || time.Since(begun) > StallTimeout/2 {
		t.Errorf("got %v after %v, want ErrDisconnected at once", err, time.Since(begun))
	}
	err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {})
	if !errors.Is(err, ErrDisconnected) && !errors.Is(err, ErrStalled) {
		t.Errorf("a peer that is gone: %v", err)
	}
}

// TestFailuresAreReportedAndNotRemembered: whom to pass over for a while is the planner's
// to say, so a peer that has failed is asked again by whoever asks again.
func TestFailuresAreReportedAndNotRemembered(t *testing.T) {
	m := newMesh()
	client := m.start(t, trust.RoleNode, nil)
	deaf := newHost(t, trust.NewPrivateKey()) // does not speak the protocol
	connect(t, client.host, deaf)
	ask := func() error {
		return client.Want(within(t), deaf.ID(), Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {})
	}
	for range 5 {
		if err := ask(); !errors.Is(err, ErrDisconnected) {
			t.Fatalf("got %v, want ErrDisconnected", err)
		}
	}
	deaf.SetStreamHandler(protocolID(m), func(s network.Stream) {
		f := newFramed(s, time.Second, new(atomic.Int64))
		hello, _ := f.hello()
		f.send(0, m.hello(deaf, hello.Lane))
		h, err := f.header()
		if err == nil {
			f.message(h)
			f.send(h.ID, wire.Unknown{})
		}
		f.header() // until the other end closes
		s.Reset()
	})
	if err := ask(); err != nil {
		t.Errorf("asked again at once: %v", err)
	}
}

func TestCancelReachesTheServer(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 8)
	begun, cause := make(chan struct{}, 1), make(chan error, 1)
	l.want = func(ctx context.Context, _ Peer, _ Request, w Responder) {
		w.Data(ctx, 0, Object{Body: l.chunks[0].Bytes()})
		w.Queued(0)
		begun <- struct{}{}
		<-ctx.Done()
		cause <- context.Cause(ctx)
		w.Data(context.Background(), 1, Object{Body: l.chunks[1].Bytes()}) // too late, and harmless
	}
	server, client := m.pair(t, l)
	for range 3 {
		ctx, cancel := context.WithCancel(within(t))
		failed := make(chan error)
		go func() {
			failed <- client.Want(ctx, server.id, Request{Root: m.root, Indexes: indexes(0, 8)}, func(Reply) {})
		}()
		<-begun
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want Canceled", err)
		}
		if err := <-cause; !errors.Is(err, errCanceled) {
			t.Errorf("the server's context ended by %v", err)
		}
	}
	l.want = nil
	if err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: indexes(0, 8)}, func(Reply) {}); err != nil {
		t.Errorf("after cancels: %v", err)
	}
	select {
	case err := <-client.violations:
		t.Errorf("late replies were taken for a violation: %v", err)
	default:
	}
}

func TestCancelWhileDataFlows(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 64)
	server, client := m.pair(t, l)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(within(t))
			defer cancel()
			seen, over := 0, false
			_ = client.Want(ctx, server.id, Request{Root: m.root, Indexes: indexes(0, 64), Priority: Priority(i % wire.Priorities)}, func(Reply) {
				if over {
					t.Error("called back after Want returned")
				}
				if seen++; seen == i {
					cancel()
				}
			})
			over = true
		})
	}
	wg.Wait()
	if err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: indexes(0, 64)}, func(Reply) {}); err != nil {
		t.Errorf("after cancels: %v", err)
	}
	if len(client.violations)+len(server.violations) > 0 {
		t.Error("cancels were taken for violations")
	}
}

func TestHostileAskerIsReported(t *testing.T) {
	want := wire.Want{Root: content.Sum(nil), Indexes: []uint64{1}}
	for name, say := range map[string]func(f *framed){
		"no hello":                 func(f *framed) { f.send(1, want) },
		"garbage":                  func(f *framed) { f.stream.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")) },
		"a want on the wrong lane": func(f *framed) { f.send(0, wire.Hello{}); f.send(1, want) },
		"a call on the wrong lane": func(f *framed) { f.send(0, wire.Hello{Lane: wire.LaneBulk}); f.send(1, wire.Call{Method: "x"}) },
		"an answer":                func(f *framed) { f.send(0, wire.Hello{}); f.send(1, wire.Answer{}) },
		"data":                     func(f *framed) { f.send(0, wire.Hello{}); data(f, 1, wire.Data{}, []byte("x")) },
		"an ack for nothing":       func(f *framed) { f.send(0, wire.Hello{Lane: wire.LaneBulk}); f.send(0, wire.Ack{Bytes: 5}) },
		"somebody else's identity": func(f *framed) { f.send(0, wire.Hello{Chain: foreignChain()}) },
		"a chain that is not CBOR": func(f *framed) { f.send(0, wire.Hello{Chain: []byte("chain")}) },
		"two requests of one id":   func(f *framed) { f.send(0, wire.Hello{Lane: wire.LaneBulk}); f.send(1, want); f.send(1, want) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh()
			l := newLibrary(m.root, 1)
			l.want = func(ctx context.Context, _ Peer, _ Request, w Responder) { w.Queued(0); <-ctx.Done() }
			server := m.start(t, trust.RoleNode, l.serve)
			h := newHost(t, trust.NewPrivateKey())
			connect(t, h, server.host)
			s, err := h.NewStream(within(t), server.id, protocolID(m))
			if err != nil {
				t.Fatal(err)
			}
			say(newFramed(s, deadline, new(atomic.Int64)))
			if got := <-server.violations; !strings.Contains(got.Error(), h.ID().String()) {
				t.Errorf("reported %v, want %s", got, h.ID())
			}
		})
	}
}

// foreignChain is a certificate of a key that nobody here has.
func foreignChain() []byte {
	return chainOf(trust.NewPrivateKey(), trust.NewPrivateKey().Public())
}

// chainOf is the encoded certificate that a mesh issues to a key.
func chainOf(mesh trust.PrivateKey, subject trust.PublicKey) []byte {
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: subject, Role: trust.RoleNode, Farm: "north"}, time.Now())
	if err != nil {
		panic(err)
	}
	b, err := content.NewCodec().Marshal(chain)
	if err != nil {
		panic(err)
	}
	return b
}

// TestStrangersSayLittle: the stream of one that begins a large frame ends before
// anything is set aside for it.
func TestStrangersSayLittle(t *testing.T) {
	m := newMesh()
	server := m.start(t, trust.RoleNode, newLibrary(m.root, 1).serve)
	h := newHost(t, trust.NewPrivateKey())
	connect(t, h, server.host)
	s, err := h.NewStream(within(t), server.id, protocolID(m))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	f := newFramed(s, time.Second, new(atomic.Int64))
	f.send(0, wire.Hello{})
	if _, err := f.hello(); err != nil {
		t.Fatal(err)
	}
	s.Write(wire.Header{Type: wire.TypeCall, ID: 1, Length: strangerFrameMax + 1}.Append(nil))
	s.SetReadDeadline(time.Now().Add(deadline))
	if _, err := f.header(); !errors.Is(err, network.ErrReset) {
		t.Errorf("got %v, want the stream to be reset", err)
	}
}

func TestAskerThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 256)
	server, client := m.pair(t, l)
	h := newHost(t, trust.NewPrivateKey())
	connect(t, h, server.host)
	s, err := h.NewStream(within(t), server.id, protocolID(m))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	f := newFramed(s, time.Second, new(atomic.Int64))
	f.send(0, wire.Hello{Lane: wire.LaneBulk})
	for id := range uint32(strangerWantsMax) {
		f.send(id+1, wire.Want{Root: m.root, Indexes: indexes(0, 32)})
	}
	for _, priority := range []Priority{PriorityGuest, PrioritySeed} {
		if err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: indexes(0, 256), Priority: priority}, func(Reply) {}); err != nil {
			t.Errorf("%v: %v", priority, err)
		}
	}
}
