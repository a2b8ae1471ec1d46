package exchange

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/x/simlibp2p"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

// simulate runs f with two members on a simulated link of 20 Mbit/s and a round
// trip of 100 ms, over QUIC. Time is simulated too, so it may be asserted on.
func simulate(t *testing.T, l *library, f func(t *testing.T, server, client *member)) {
	synctest.Test(t, func(t *testing.T) {
		m := mesh{trust.NewPrivateKey(), l.root}
		a, b := simlibp2p.GetBasicHostPair(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		server, client := m.on(t, b, l.serve), m.on(t, a, nil)
		for _, x := range []*member{server, client} {
			go func() { done <- x.Run(ctx) }()
		}
		synctest.Wait()
		f(t, server, client)
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		a.Close()
		b.Close()
	})
}

// on builds a member on a host that is there already.
func (m mesh) on(t *testing.T, h host.Host, change func(*Config)) *member {
	t.Helper()
	chain, err := trust.Signer{Key: m.key}.Issue(trust.Identity{Key: keyOf(t, h.ID()), Role: trust.RoleNode, Farm: "north"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Host: h, Ledger: identity.New(trust.NewVerifier(m.key.Public()), time.Now), Chain: chain}
	if change != nil {
		change(&cfg)
	}
	x, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &member{Exchange: x, id: h.ID(), host: h}
}

// TestSlowLink prefetches for several seconds over a slow link: nothing is taken
// for stalled, and a guest's fault on the way waits for a few round trips, not for
// the prefetch.
func TestSlowLink(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 64)
	simulate(t, l, func(t *testing.T, server, client *member) {
		ctx := t.Context()
		begun := time.Now()
		pulled := make(chan error)
		go func() {
			pulled <- client.Want(ctx, server.id, Request{Root: l.root, Indexes: indexes(0, 64), Priority: PriorityPrefetch}, func(Reply) {})
		}()
		var worst time.Duration
		for i := range 8 {
			asked := time.Now()
			if err := client.Want(ctx, server.id, Request{Root: l.root, Indexes: []uint64{uint64(i)}, Priority: PriorityGuest}, func(Reply) {}); err != nil {
				t.Error(err)
			}
			worst = max(worst, time.Since(asked))
		}
		if err := <-pulled; err != nil {
			t.Error(err)
		}
		t.Logf("pulled in %v, worst fault %v", time.Since(begun), worst)
		if worst > 700*time.Millisecond {
			t.Errorf("a fault took %v beside a prefetch", worst)
		}
	})
}

// TestCompressionBeatsASlowLink pulls chunks of zeros and ones faster than the
// link could carry them as they are, unless they are said not to get smaller.
func TestCompressionBeatsASlowLink(t *testing.T) {
	for _, dense := range []bool{false, true} {
		took := pullPattern(t, dense)
		if asTheyAre := took > 12*time.Second; asTheyAre != dense {
			t.Errorf("32 MiB of pattern, dense %t, took %v; as they are they take 14 s", dense, took)
		}
	}
}

func pullPattern(t *testing.T, dense bool) (took time.Duration) {
	l := newLibrary(content.Sum([]byte("root")), 0)
	l.dense = dense
	for i := range uint64(128) {
		l.chunks[i] = content.Seal(bytes.Repeat([]byte{byte(i), 0, 1}, content.ChunkSizeDefault/3))
	}
	simulate(t, l, func(t *testing.T, server, client *member) {
		begun := time.Now()
		for range 2 {
			err := client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: indexes(0, 128), Priority: PriorityPrefetch}, func(r Reply) {
				d := r.(*Data)
				if _, err := content.Verify(l.chunks[d.Index].CID(), d.Body); err != nil {
					t.Error(err)
				}
			})
			if err != nil {
				t.Error(err)
			}
		}
		took = time.Since(begun)
	})
	return took
}

// TestUploadRate prefetches from a member with a rate far below its link's: that is kept,
// it is told as what is left, and guests wait for an object's time.
func TestUploadRate(t *testing.T) {
	const rate, chunks = 512 << 10, 40
	l := newLibrary(content.Sum([]byte("root")), chunks)
	simulate(t, l, func(t *testing.T, server, client *member) {
		server.SetUploadRate(rate)
		begun := time.Now()
		pulled := make(chan error)
		var last wire.Spare
		go func() {
			pulled <- client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: indexes(0, chunks), Priority: PriorityPrefetch}, func(r Reply) {
				if d, ok := r.(*Data); ok {
					last = d.Spare
				}
			})
		}()
		const guests = 10
		for i := range guests {
			asked := time.Now()
			if err := client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: []uint64{uint64(i)}, Priority: PriorityGuest}, func(Reply) {}); err != nil {
				t.Error(err)
			}
			if took := time.Since(asked); took > time.Second*content.ChunkSizeDefault/rate+400*time.Millisecond {
				t.Errorf("a fault took %v beside a prefetch", took)
			}
		}
		if err := <-pulled; err != nil {
			t.Error(err)
		}
		sent := int64((chunks + guests) * content.ChunkSizeDefault)
		if took, least := time.Since(begun), time.Duration((sent-rate/4)*int64(time.Second)/rate); took < least || took > least*5/4 {
			t.Errorf("%d bytes took %v at %d a second", sent, took, rate)
		}
		served := server.Served()[trust.RoleNode]
		if moved := server.With(client.id); served.Peers != 1 || served.Bytes < sent || moved.Sent != served.Bytes || client.With(server.id).Received != moved.Sent {
			t.Errorf("of %d bytes %+v are counted, %+v with the one who has them", sent, served, moved)
		}
		if most := wire.SpareOf(rate); last > most || last < most/2 {
			t.Errorf("at the end the server has %d KiB/s to spare, of %d", last, most)
		}
	})
}

func TestStalledPeerIsPassedOver(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 1)
	l.want = func(ctx context.Context, _ Peer, _ Request, w Responder) {
		w.Queued(0)
		<-ctx.Done() // and no progress
	}
	simulate(t, l, func(t *testing.T, server, client *member) {
		for _, priority := range []Priority{PriorityGuest, PriorityPrefetch} {
			begun := time.Now()
			err := client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: []uint64{0}, Priority: priority}, func(Reply) {})
			if took := time.Since(begun); !errors.Is(err, ErrStalled) || took < StallTimeout || took > StallTimeout+time.Second {
				t.Errorf("%v: got %v after %v", priority, err, took)
			}
		}
	})
}

// TestDeafPeerLosesItsStreams has a peer that answers nothing at all, not even
// cancels.
func TestDeafPeerLosesItsStreams(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 1)
	simulate(t, l, func(t *testing.T, server, client *member) {
		streams := new(atomic.Int32)
		server.host.SetStreamHandler(client.protocol, func(s network.Stream) {
			defer s.Reset()
			streams.Add(1)
			f := newFramed(s, time.Second, new(atomic.Int64))
			hello, err := f.hello()
			if err == nil {
				err = f.send(0, wire.Hello{Lane: hello.Lane, Chain: server.shown()})
			}
			for err == nil {
				var h wire.Header
				if h, err = f.header(); err == nil {
					err = f.skip(h.Length)
				}
			}
		})
		req := Request{Root: l.root, Indexes: []uint64{0}}
		for begun := time.Now(); streams.Load() < 2; {
			if err := client.Want(t.Context(), server.id, req, func(Reply) {}); !errors.Is(err, ErrStalled) {
				t.Fatalf("got %v, want ErrStalled", err)
			}
			if time.Since(begun) > 4*canceledLife {
				t.Fatal("the stream of a deaf peer is kept")
			}
		}
	})
}

// TestDribblingPeerIsStalled has a peer send a byte of a chunk each second: alive,
// but of no use.
func TestDribblingPeerIsStalled(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 1)
	simulate(t, l, func(t *testing.T, server, client *member) {
		ended := make(chan struct{})
		defer close(ended)
		server.host.SetStreamHandler(client.protocol, func(s network.Stream) {
			defer s.Reset()
			f := newFramed(s, time.Second, new(atomic.Int64))
			hello, err := f.hello()
			if err == nil {
				err = f.send(0, wire.Hello{Lane: hello.Lane, Chain: server.shown()})
			}
			var h wire.Header
			if err == nil {
				h, err = f.header()
			}
			if err == nil {
				err = f.skip(h.Length)
			}
			d := wire.Data{Raw: content.ChunkSizeDefault, Stored: content.ChunkSizeDefault}
			for b := d.Append(nil, h.ID); err == nil; b = []byte{0} {
				err = f.write(b)
				select {
				case <-time.After(time.Second):
				case <-ended:
					return
				}
			}
		})
		begun := time.Now()
		err := client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: []uint64{0}, Priority: PriorityGuest}, func(Reply) {})
		if took := time.Since(begun); !errors.Is(err, ErrStalled) || took > 2*serveTimeout {
			t.Errorf("got %v after %v, want ErrStalled", err, took)
		}
	})
}

func TestProgressKeepsARequestAlive(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 1)
	l.want = func(ctx context.Context, _ Peer, _ Request, w Responder) {
		w.Queued(3)
		for range 10 * StallTimeout / ProgressInterval {
			<-time.After(ProgressInterval)
			w.Progress()
		}
		w.Data(ctx, 0, Object{Body: l.chunks[0].Bytes()})
	}
	simulate(t, l, func(t *testing.T, server, client *member) {
		var got []string
		err := client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: []uint64{0}, Fetch: true}, func(r Reply) {
			if name := fmt.Sprintf("%T", r); len(got) == 0 || got[len(got)-1] != name {
				got = append(got, name)
			}
		})
		if want := "wire.Queued wire.Progress *exchange.Data"; err != nil || strings.Join(got, " ") != want {
			t.Errorf("got %v, %v; want %s", got, err, want)
		}
	})
}

// TestWaitingInLineIsProgress has a server whose only turn is taken for long.
func TestWaitingInLineIsProgress(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 2)
	l.want = func(_ context.Context, _ Peer, req Request, w Responder) {
		for n := 0; req.Indexes[0] == 0 && n < 20; n++ {
			<-time.After(ProgressInterval)
			w.Progress()
		}
		w.Absent(req.Indexes...)
	}
	simulate(t, l, func(t *testing.T, server, client *member) {
		server.turns.Max = 1
		failed := make(chan error)
		for i := range 2 {
			go func() {
				failed <- client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: []uint64{uint64(i)}}, func(Reply) {})
			}()
			synctest.Wait()
		}
		if first, second := <-failed, <-failed; first != nil || second != nil {
			t.Errorf("got %v and %v", first, second)
		}
	})
}

func TestSlowConsumerIsNotAStalledPeer(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 4)
	simulate(t, l, func(t *testing.T, server, client *member) {
		err := client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: indexes(0, 4)}, func(Reply) {
			<-time.After(3 * StallTimeout)
		})
		if err != nil {
			t.Error(err)
		}
	})
}
