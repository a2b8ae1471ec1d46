package exchange

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

// TestWhoIsAskedProvesWhoItIs: Meet says who a peer is by its certificate, and a
// stranger is asked nothing at all.
func TestWhoIsAskedProvesWhoItIs(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	asked := new(atomic.Int32)
	l.want = func(_ context.Context, _ Peer, _ Request, w Responder) { asked.Add(1); w.Absent(0) }
	l.call = func(context.Context, Peer, string, []byte) ([]byte, error) { asked.Add(1); return nil, nil }
	l.bitmaps = func(context.Context, func(*content.Bitmap) error) error { asked.Add(1); return nil }
	client := m.start(t, trust.RoleNode, nil)
	member := m.start(t, trust.RoleSeed, l.serve)
	connect(t, client.host, member.host)
	for range 2 {
		if who, err := client.Meet(within(t), member.id); err != nil || who.Role != trust.RoleSeed {
			t.Errorf("a seed is met as %v, %v", who, err)
		}
	}
	if who, ok := client.ledger.Of(member.id); !ok || who.Key != keyOf(t, member.id) {
		t.Errorf("a peer that was met is %v, %v", who, ok)
	}
	if who, ok := member.ledger.Of(client.id); !ok || who.Farm != "north" {
		t.Errorf("a peer that asked is %v, %v", who, ok)
	}
	if client.proved.Load() != 1 || member.proved.Load() != 1 {
		t.Errorf("told %d and %d times of a proof, want once", client.proved.Load(), member.proved.Load())
	}
	for name, change := range map[string]func(*Config){
		"no certificate":       func(cfg *Config) { cfg.Chain = nil },
		"that of another mesh": func(cfg *Config) { cfg.Chain = issue(t, trust.NewPrivateKey(), keyOf(t, cfg.Host.ID())) },
	} {
		stranger := m.start(t, "", func(cfg *Config) { l.serve(cfg); change(cfg) })
		connect(t, client.host, stranger.host)
		if who, err := client.Meet(within(t), stranger.id); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("%s: met as %v, %v; want ErrForbidden", name, who, err)
		}
		err := client.Want(within(t), stranger.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {})
		if !errors.Is(err, content.ErrUnavailable) || errors.Is(err, content.ErrForbidden) {
			t.Errorf("%s: want: %v", name, err)
		}
		if _, err := client.Call(within(t), stranger.id, "resolve", nil); !errors.Is(err, content.ErrUnavailable) {
			t.Errorf("%s: call: %v", name, err)
		}
		if err := client.Introduce(within(t), stranger.id, []byte("sealed")); !errors.Is(err, content.ErrUnavailable) {
			t.Errorf("%s: introduce: %v", name, err)
		}
		for _, err := range client.Bitmaps(within(t), stranger.id, m.root, content.MapFanout) {
			if err == nil {
				t.Errorf("%s: a bitmap came", name)
			}
		}
		if _, ok := client.ledger.Of(stranger.id); ok {
			t.Errorf("%s: it has proved itself", name)
		}
	}
	if n := asked.Load(); n > 0 || len(l.introduced) > 0 {
		t.Errorf("strangers were asked %d times, told %d records", n, len(l.introduced))
	}
	if len(client.violations) > 0 {
		t.Errorf("strangers were taken for violators: %v", <-client.violations)
	}
}

// TestCertificateOfAnotherKeyIsAViolation when the asked shows it, too.
func TestCertificateOfAnotherKeyIsAViolation(t *testing.T) {
	m := newMesh()
	client := m.start(t, trust.RoleNode, nil)
	thief := m.start(t, "", func(cfg *Config) { cfg.Chain = issue(t, m.key, keyOf(t, client.id)) })
	connect(t, client.host, thief.host)
	if who, err := client.Meet(within(t), thief.id); !errors.Is(err, ErrViolation) && !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("met as %v, %v", who, err)
	}
	if err := <-client.violations; err == nil {
		t.Error("not reported")
	}
}

func issue(t *testing.T, mesh trust.PrivateKey, subject trust.PublicKey) trust.Chain {
	t.Helper()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: subject, Role: trust.RoleNode, Farm: "north"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// TestRevocationCutsWhatIsOpen in both directions, at once.
func TestRevocationCutsWhatIsOpen(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	entered, left := make(chan struct{}, 2), make(chan struct{}, 2)
	l.want = func(ctx context.Context, _ Peer, _ Request, w Responder) {
		w.Queued(0)
		entered <- struct{}{}
		<-ctx.Done()
		left <- struct{}{}
	}
	verifier := trust.NewVerifier(m.key.Public())
	honest := m.start(t, trust.RoleNode, func(cfg *Config) { l.serve(cfg); cfg.Ledger = identity.New(verifier, time.Now) })
	bad := m.start(t, trust.RoleNode, l.serve)
	connect(t, honest.host, bad.host)
	failed := make(chan error, 2)
	ask := func(from, to *member) {
		failed <- from.Want(within(t), to.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {})
	}
	go ask(honest, bad)
	go ask(bad, honest)
	<-entered
	<-entered
	verifier.Revoke(map[trust.PublicKey]time.Time{keyOf(t, bad.id): time.Now()})
	honest.Recheck()
	for range 2 {
		if err := <-failed; !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v, want ErrDisconnected", err)
		}
		<-left
	}
	if honest.lost.Load() != 1 {
		t.Errorf("told %d times, want once", honest.lost.Load())
	}
	if _, err := honest.Meet(within(t), bad.id); err == nil {
		t.Error("the revoked is met again")
	}
}

// silent opens a stream and says hello, or not even that.
func silent(t *testing.T, h host.Host, to *member, hello bool) network.Stream {
	t.Helper()
	s, err := h.NewStream(within(t), to.id, to.protocol)
	if err != nil {
		t.Fatal(err)
	}
	f := newFramed(s, time.Second, new(atomic.Int64))
	if hello {
		if err := f.send(0, wire.Hello{Lane: wire.LaneBulk}); err != nil {
			t.Fatal(err)
		}
	} else if _, err := s.Write([]byte{0}); err != nil { // so that the stream is there at all
		t.Fatal(err)
	}
	return s
}

// TestSilentStrangersDoNotKeepANewcomerOut: more of them than there are places, each
// with all the streams that it may have, and one whose invite is looked at meanwhile
// is answered.
func TestSilentStrangersDoNotKeepANewcomerOut(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	looking, go1 := make(chan struct{}), make(chan struct{})
	l.call = func(_ context.Context, _ Peer, method string, _ []byte) ([]byte, error) {
		looking <- struct{}{}
		<-go1
		return []byte("certificate"), nil
	}
	const most = 8 // of strangersMax, each of which is a host here
	server := m.start(t, trust.RoleNode, l.serve)
	server.askers.max = most
	flood := func(n int) {
		for range n {
			h := newHost(t, trust.NewPrivateKey())
			connect(t, h, server.host)
			for i := range streamsMax {
				silent(t, h, server, i > 0)
			}
		}
	}
	flood(most + 2)
	newcomer := m.start(t, "", nil)
	connect(t, newcomer.host, server.host)
	type result struct {
		answer []byte
		err    error
	}
	done := make(chan result)
	go func() {
		answer, err := newcomer.Call(within(t), server.id, "redeem", nil)
		done <- result{answer, err}
	}()
	<-looking
	flood(3) // push out somebody else
	close(go1)
	if r := <-done; r.err != nil || string(r.answer) != "certificate" {
		t.Errorf("a newcomer's call: %q, %v", r.answer, r.err)
	}
	greeted := 0
	server.askers.mu.Lock()
	for _, a := range server.askers.peers {
		if hello, _, _ := a.state(); hello {
			greeted++
		}
	}
	server.askers.mu.Unlock()
	if greeted > most+3 { // some may be on their way out
		t.Errorf("%d strangers are served", greeted)
	}
}

// stranger runs f with a member and the bare host of a stranger on a simulated link.
func stranger(t *testing.T, l *library, f func(t *testing.T, server *member, h host.Host)) {
	simulate(t, l, func(t *testing.T, server, client *member) { f(t, server, client.host) })
}

// endsWithin fails unless the other end resets the stream within that time, after at
// least a time.
func endsWithin(t *testing.T, s network.Stream, least, most time.Duration) {
	t.Helper()
	begun := time.Now()
	s.SetReadDeadline(begun.Add(2 * most))
	var err error
	for b := make([]byte, 1<<10); err == nil; {
		_, err = s.Read(b)
	}
	if took := time.Since(begun); !errors.Is(err, network.ErrReset) || took < least || took > most {
		t.Errorf("the stream ended after %v by %v; want a reset between %v and %v", took, err, least, most)
	}
}

func TestStreamsThatSayNothingEnd(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 1)
	stranger(t, l, func(t *testing.T, server *member, h host.Host) {
		endsWithin(t, silent(t, h, server, false), helloTimeout/2, helloTimeout+time.Second)
	})
	stranger(t, l, func(t *testing.T, server *member, h host.Host) {
		endsWithin(t, silent(t, h, server, true), strangerIdle-time.Second, strangerIdle+2*sweepInterval)
	})
}

// TestFrameThatDoesNotComeEnds: a member says that a large frame comes, and then
// nothing. It gets a step of memory, and some time.
func TestFrameThatDoesNotComeEnds(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 1)
	simulate(t, l, func(t *testing.T, server, client *member) {
		s, err := client.host.NewStream(t.Context(), server.id, server.protocol)
		if err != nil {
			t.Fatal(err)
		}
		f := newFramed(s, time.Second, new(atomic.Int64))
		f.send(0, wire.Hello{Chain: client.shown()})
		if _, err := f.hello(); err != nil {
			t.Fatal(err)
		}
		s.Write(wire.Header{Type: wire.TypeCall, ID: 1, Length: wire.CallSizeMax}.Append(nil))
		endsWithin(t, s, serveTimeout, serveTimeout+timeFor(wire.CallSizeMax)+3*sweepInterval)
	})
}

// TestQuietStreamsAreGivenUp, and opened again when something is asked.
func TestQuietStreamsAreGivenUp(t *testing.T) {
	l := newLibrary(content.Sum([]byte("root")), 1)
	simulate(t, l, func(t *testing.T, server, client *member) {
		ask := func() {
			t.Helper()
			if err := client.Want(t.Context(), server.id, Request{Root: l.root, Indexes: []uint64{0}}, func(Reply) {}); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		<-time.After(quietMax + time.Second)
		synctest.Wait()
		if n := len(client.session(server.id).streams()); n != 0 || server.askers.find(client.id) != nil {
			t.Errorf("%d streams are kept", n)
		}
		ask()
	})
}

// TestStrangersShareARate of their own, beside which a member has the link.
func TestStrangersShareARate(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 64)
	server := m.start(t, trust.RoleNode, l.serve)
	server.strangers.SetLimit(rate.Limit(1)) // what is over the burst never comes
	reader := m.start(t, "", nil)
	client := m.start(t, trust.RoleNode, nil)
	connect(t, reader.host, server.host)
	connect(t, client.host, server.host)
	ctx, cancel := context.WithCancel(within(t))
	got, ended := make(chan int, 1024), make(chan error)
	go func() {
		ended <- reader.Want(ctx, server.id, Request{Root: m.root, Indexes: indexes(0, 64)}, func(r Reply) {
			if d, ok := r.(*Data); ok {
				got <- len(d.Body)
			}
		})
	}()
	sent := 0
	for sent+2*content.ChunkSizeDefault < strangersBurst {
		sent += <-got
	}
	for range 4 {
		if err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: indexes(0, 64)}, func(Reply) {}); err != nil {
			t.Errorf("a member beside strangers: %v", err)
		}
	}
	cancel()
	<-ended
	for len(got) > 0 {
		sent += <-got
	}
	if sent > strangersBurst+content.ChunkSizeDefault {
		t.Errorf("strangers were sent %d bytes", sent)
	}
}

// TestBodiesOfCallsAreBounded: each of a member's calls may be large, all together not.
func TestBodiesOfCallsAreBounded(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 0)
	entered := make(chan struct{}, smallMax)
	l.call = func(ctx context.Context, _ Peer, _ string, _ []byte) ([]byte, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	server, client := m.pair(t, l)
	ctx, cancel := context.WithCancel(within(t))
	ended := make(chan error)
	const fit = bodiesMax / wire.CallSizeMax
	for range fit {
		go func() {
			_, err := client.Call(ctx, server.id, "commit", make([]byte, wire.CallSizeMax))
			ended <- err
		}()
		<-entered
	}
	if _, err := client.Call(within(t), server.id, "commit", make([]byte, wire.CallSizeMax)); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	cancel()
	for range fit {
		<-ended
	}
}

// BenchmarkHello opens a stream and says hello: how many a member takes a second, of a
// peer that it does not know yet, signatures included, and of one that it does.
func BenchmarkHello(b *testing.B) {
	m := newMesh()
	client, server := m.start(b, trust.RoleNode, nil), m.start(b, trust.RoleNode, nil)
	connect(b, client.host, server.host)
	for name, chains := range map[string]int{"known": 1, "fresh": 2} {
		b.Run(name, func(b *testing.B) {
			hello := []wire.Hello{m.hello(client.host, wire.LaneControl), m.hello(client.host, wire.LaneControl)}
			n := 0
			for b.Loop() {
				s, err := client.host.NewStream(b.Context(), server.id, server.protocol)
				if err != nil {
					b.Fatal(err)
				}
				f := newFramed(s, time.Second, new(atomic.Int64))
				if err := f.send(0, hello[n%chains]); err != nil { // by turns: only the last is known
					b.Fatal(err)
				}
				if _, err := f.hello(); err == nil { // else the ends of the last few were not noticed yet
					n++
				}
				s.Reset()
			}
			if n == 0 {
				b.Fatal("no hello was answered")
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "hellos/s")
		})
	}
}
