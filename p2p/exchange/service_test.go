package exchange

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

// TestUrgentRequestsOvertake blocks the only turn of a server, lets requests of
// all priorities queue up behind it, the least urgent first, and looks at the
// order in which the server is asked once it goes on.
func TestUrgentRequestsOvertake(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	entered, release := make(chan Priority), make(chan struct{})
	l.want = func(ctx context.Context, _ Peer, req Request, w Responder) {
		entered <- req.Priority
		<-release
		w.Absent(0) // data would also wait for the link
	}
	server := m.start(t, trust.RoleNode, func(cfg *Config) { l.serve(cfg); cfg.turns = 1 })
	clients := []*member{m.start(t, trust.RoleNode, nil), m.start(t, trust.RoleNode, nil)}
	var wg sync.WaitGroup
	ask := func(c *member, priority Priority) (queued chan struct{}) {
		queued = make(chan struct{}, 1)
		wg.Go(func() {
			err := c.Want(within(t), server.id, Request{Root: m.root, Indexes: []uint64{0}, Priority: priority}, func(r Reply) {
				if _, ok := r.(Queued); ok {
					queued <- struct{}{}
				}
			})
			if err != nil {
				t.Errorf("%v: %v", priority, err)
			}
		})
		return queued
	}
	for _, c := range clients {
		connect(t, c.host, server.host)
	}
	ask(clients[0], PriorityPrefetch)
	<-entered
	for _, priority := range []Priority{PrioritySeed, PriorityPrefetch, PriorityReadahead} {
		for _, c := range clients {
			<-ask(c, priority)
		}
	}
	ask(clients[0], PriorityGuest) // has a turn of its own, whatever else waits
	if got := <-entered; got != PriorityGuest {
		t.Errorf("%v went first, want the guest", got)
	}
	release <- struct{}{}
	release <- struct{}{}
	var order []Priority
	for range 6 {
		order = append(order, <-entered)
		release <- struct{}{}
	}
	wg.Wait()
	want := []Priority{PriorityReadahead, PriorityReadahead, PriorityPrefetch, PriorityPrefetch, PrioritySeed, PrioritySeed}
	if !slices.Equal(order, want) {
		t.Errorf("served %v, want %v", order, want)
	}
}

// TestGuestOvertakesOnTheLink holds that the chunks of a prefetch that is under
// way do not all go before a guest's.
func TestGuestOvertakesOnTheLink(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1024)
	server, client := m.pair(t, l)
	ctx, cancel := context.WithCancel(within(t))
	flowing := make(chan struct{})
	done := make(chan int)
	go func() {
		n := 0
		_ = client.Want(ctx, server.id, Request{Root: m.root, Indexes: indexes(0, 1024), Priority: PriorityPrefetch}, func(Reply) {
			if n++; n == 16 {
				close(flowing)
			}
		})
		done <- n
	}()
	<-flowing
	if err := client.Want(ctx, server.id, Request{Root: m.root, Indexes: []uint64{7}, Priority: PriorityGuest}, func(Reply) {}); err != nil {
		t.Error(err)
	}
	cancel()
	if n := <-done; n == 1024 {
		t.Error("all of the prefetch came before the guest's chunk")
	}
}

func TestOverBudgetIsBusy(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	entered := make(chan struct{}, wantsMax)
	l.want = func(ctx context.Context, _ Peer, _ Request, w Responder) {
		w.Queued(0)
		entered <- struct{}{}
		<-ctx.Done()
	}
	server, client := m.pair(t, l)
	ctx, cancel := context.WithCancel(within(t))
	var wg sync.WaitGroup
	const many = indexesMax / wire.IndexesMax
	for range many {
		wg.Go(func() {
			_ = client.Want(ctx, server.id, Request{Root: m.root, Indexes: indexes(0, wire.IndexesMax)}, func(Reply) {})
		})
	}
	for range many {
		<-entered
	}
	err := client.Want(ctx, server.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {})
	if !errors.Is(err, ErrBusy) || !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	cancel()
	wg.Wait()
	l.want = nil
	for ctx := within(t); ; { // the server takes a moment to see that they were canceled
		err := client.Want(ctx, server.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {})
		if err == nil {
			break
		}
		if !errors.Is(err, ErrBusy) {
			t.Fatalf("after cancels: %v", err)
		}
	}
}

func TestOwnPlacesKeepWithinTheBudget(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	server, client := m.pair(t, l)
	var wg sync.WaitGroup
	for range 3 * wantsMax {
		wg.Go(func() {
			if err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestStrangersAreServedLast(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 4)
	var seen []Peer
	var asked []Priority
	l.want = func(ctx context.Context, from Peer, req Request, w Responder) {
		seen, asked = append(seen, from), append(asked, req.Priority)
		w.Data(ctx, 0, Object{Body: l.chunks[0].Bytes()})
	}
	server := m.start(t, trust.RoleNode, l.serve)
	ask := func(c *member) {
		t.Helper()
		connect(t, c.host, server.host)
		if err := c.Want(within(t), server.id, Request{Root: m.root, Indexes: []uint64{0}, Priority: PriorityGuest}, func(Reply) {}); err != nil {
			t.Fatal(err)
		}
	}
	ask(m.start(t, "", nil))
	ask(m.start(t, trust.RoleNode, nil))
	other := newMesh().key // a chain of another mesh makes a stranger, and no violation
	ask(m.start(t, "", func(cfg *Config) {
		chain, err := trust.Signer{Key: other}.Issue(trust.Identity{Key: keyOf(t, cfg.Host.ID()), Role: trust.RoleAdmin, Farm: "north"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cfg.Chain = chain
	}))
	if want := []Priority{PrioritySeed, PriorityGuest, PrioritySeed}; !slices.Equal(asked, want) {
		t.Errorf("served as %v, want %v", asked, want)
	}
	for i, want := range []trust.Role{"", trust.RoleNode, ""} {
		if seen[i].Identity.Role != want {
			t.Errorf("asker %d has role %q, want %q", i, seen[i].Identity.Role, want)
		}
	}
	if len(server.violations) > 0 {
		t.Errorf("strangers were taken for violators: %v", <-server.violations)
	}
}

func keyOf(t *testing.T, id peer.ID) (key trust.PublicKey) {
	t.Helper()
	public, err := id.ExtractPublicKey()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := public.Raw()
	if err != nil {
		t.Fatal(err)
	}
	return trust.PublicKey(raw)
}

func TestRevocationReachesOpenStreams(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 1)
	var roles []trust.Role
	l.want = func(ctx context.Context, from Peer, _ Request, w Responder) {
		roles = append(roles, from.Identity.Role)
		w.Absent(0)
	}
	verifier := trust.NewVerifier(m.key.Public())
	server := m.start(t, trust.RoleNode, func(cfg *Config) {
		l.serve(cfg)
		cfg.Ledger = identity.New(verifier, time.Now)
	})
	client := m.start(t, trust.RoleNode, nil)
	connect(t, client.host, server.host)
	ask := func() error {
		return client.Want(within(t), server.id, Request{Root: m.root, Indexes: []uint64{0}}, func(Reply) {})
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	verifier.Revoke(map[trust.PublicKey]time.Time{keyOf(t, client.id): time.Now()})
	server.Recheck()
	if _, ok := server.ledger.Of(client.id); ok || server.lost.Load() != 1 {
		t.Errorf("the revoked is proved: %v; reported %d times", ok, server.lost.Load())
	}
	for err := ask(); err != nil; err = ask() { // its streams have ended, and it opens others
		if !errors.Is(err, ErrDisconnected) {
			t.Fatal(err)
		}
	}
	if want := []trust.Role{trust.RoleNode, ""}; !slices.Equal(roles, want) {
		t.Errorf("served as %q, want %q", roles, want)
	}
}

func TestRunEndsWithRequestsOpen(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 4)
	entered := make(chan struct{}, 2)
	l.want = func(ctx context.Context, _ Peer, _ Request, w Responder) {
		w.Queued(0)
		entered <- struct{}{}
		<-ctx.Done()
	}
	l.call = func(ctx context.Context, _ Peer, _ string, _ []byte) ([]byte, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	server, client := m.pair(t, l)
	failed := make(chan error, 2)
	go func() {
		failed <- client.Want(within(t), server.id, Request{Root: m.root, Indexes: indexes(0, 4)}, func(Reply) {})
	}()
	go func() {
		_, err := client.Call(within(t), server.id, "wait", nil)
		failed <- err
	}()
	<-entered
	<-entered
	client.stop()
	for range 2 {
		if err := <-failed; !errors.Is(err, content.ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
	server.stop()
	if err := client.Want(within(t), server.id, Request{Root: m.root, Indexes: indexes(0, 4)}, func(Reply) {}); !errors.Is(err, content.ErrClosed) {
		t.Errorf("after Run: %v, want ErrClosed", err)
	}
}

func TestBadInputIsRefused(t *testing.T) {
	m := newMesh()
	client := m.start(t, trust.RoleNode, nil)
	for name, req := range map[string]Request{
		"no indexes":         {},
		"too many":           {Indexes: indexes(0, wire.IndexesMax+1)},
		"falling":            {Indexes: []uint64{2, 1}},
		"twice the same":     {Indexes: []uint64{1, 1}},
		"over the limit":     {Indexes: []uint64{wire.IndexMax + 1}},
		"a level too high":   {Indexes: []uint64{1}, Level: content.LevelMax + 1},
		"a priority unknown": {Indexes: []uint64{1}, Priority: PriorityGuest + 1},
	} {
		if err := client.Want(within(t), client.id, req, func(Reply) {}); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a Config without a host was taken")
	}
}
