package exchange

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// notes is a Holder that has what it was told in memory.
type notes struct {
	mu      sync.Mutex
	offsets []int64
	from    []Peer
	release chan struct{} // nothing is durable before it is closed
}

func (n *notes) Take(from Peer, m wire.Message) func(context.Context) (*wire.Held, []byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.from = append(n.from, from)
	switch m := m.(type) {
	case wire.Extend:
		n.offsets = append(n.offsets, m.At.Offset)
		return func(context.Context) (*wire.Held, []byte, error) {
			<-n.release
			return nil, nil, nil
		}
	case wire.Promise:
		return func(context.Context) (*wire.Held, []byte, error) {
			return nil, nil, fmt.Errorf("%w: a later epoch has it", content.ErrFenced)
		}
	case wire.Read:
		return func(context.Context) (*wire.Held, []byte, error) { return nil, []byte("bytes"), nil }
	case wire.Status:
		return func(context.Context) (*wire.Held, []byte, error) {
			return &wire.Held{Claim: m.Claim, Segments: []content.SegmentRef{{Epoch: 7}}}, nil, nil
		}
	}
	return nil
}

// TestJournalLane sends many pieces one after the other before the first is durable, beside
// a bulk transfer: they arrive in their order, each is answered when it is durable, and
// answers of all kinds come back.
func TestJournalLane(t *testing.T) {
	m := newMesh()
	l := newLibrary(m.root, 64)
	n := &notes{release: make(chan struct{})}
	holder := m.start(t, trust.RoleNode, func(cfg *Config) { l.serve(cfg); cfg.Holder = n })
	writer := m.start(t, trust.RoleNode, nil)
	connect(t, writer.host, holder.host)
	defer prefetchAll(t, writer, holder, l)()
	var finish []func() (*wire.Held, []byte, error)
	var want []int64
	for i := range 100 {
		want = append(want, int64(i))
		f, err := writer.Ask(within(t), holder.id, wire.Extend{At: wire.Place{Offset: int64(i)}, Bytes: make([]byte, 4096)})
		if err != nil {
			t.Fatal(err)
		}
		finish = append(finish, f)
	}
	ask := func(m wire.Message) (*wire.Held, []byte, error) {
		f, err := writer.Ask(within(t), holder.id, m)
		if err != nil {
			t.Fatal(err)
		}
		return f()
	}
	if held, _, err := ask(wire.Status{}); err != nil || len(held.Segments) != 1 || held.Segments[0].Epoch != 7 {
		t.Errorf("status: %+v, %v", held, err)
	}
	if _, body, err := ask(wire.Read{Length: 5}); err != nil || string(body) != "bytes" {
		t.Errorf("read: %q, %v", body, err)
	}
	if _, _, err := ask(wire.Promise{}); !errors.Is(err, content.ErrFenced) {
		t.Errorf("promise: %v, want ErrFenced", err)
	}
	close(n.release)
	for i, f := range finish {
		if _, _, err := f(); err != nil {
			t.Fatalf("piece %d: %v", i, err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.offsets, want) {
		t.Errorf("pieces arrived as %v", n.offsets)
	}
	if who := n.from[0]; who.ID != writer.id || who.Identity.Farm != "north" {
		t.Errorf("from %+v, want the writer as its certificate names it", who)
	}
}

// prefetchAll reads all chunks in the background until the returned function is called.
func prefetchAll(t *testing.T, client, server *member, l *library) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = client.Want(ctx, server.id, Request{Root: l.root, Indexes: indexes(0, len(l.chunks)), Priority: PriorityPrefetch}, func(Reply) {})
		}
	})
	return func() { cancel(); wg.Wait() }
}

// TestJournalIsForMembers: a stranger's journal is refused, and so is anybody's where
// nothing is kept; what belongs to another lane breaks the protocol.
func TestJournalIsForMembers(t *testing.T) {
	m := newMesh()
	holder := m.start(t, trust.RoleNode, func(cfg *Config) { cfg.Holder = &notes{} })
	keepsNone := m.start(t, trust.RoleNode, nil)
	stranger, writer := m.start(t, "", nil), m.start(t, trust.RoleNode, nil)
	for _, c := range []struct{ from, to *member }{{stranger, holder}, {writer, keepsNone}} {
		connect(t, c.from.host, c.to.host)
		f, err := c.from.Ask(within(t), c.to.id, wire.Status{})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := f(); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("got %v, want ErrForbidden", err)
		}
	}
	connect(t, writer.host, holder.host)
	p := newPending()
	o, id, err := writer.session(holder.id).begin(within(t), wire.LaneControl, p, wire.Status{})
	if err == nil {
		err = o.await(within(t), id, p)
	}
	if !errors.Is(err, ErrDisconnected) {
		t.Errorf("status on the control lane: %v, want the stream to end", err)
	}
	if err := <-holder.violations; !errors.Is(err, ErrViolation) {
		t.Errorf("got %v, want ErrViolation", err)
	}
}
