package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/farm"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/lab"
)

// liarVariable makes the test binary a liar; its value is a liarPlan in JSON.
const liarVariable = "GRANGE_MESH_TEST_LIAR"

// liarPlan says whom a liar stands in for and what it claims to hold.
type liarPlan struct {
	Data     string // of the member whose key and certificate it has
	Listen   string
	FarmBind string
	FarmJoin []string
	Root     content.CID
	Blocks   uint64 // of the root
	// Babble is a member to send noise to, when SIGUSR1 comes; empty lies to
	// whoever asks.
	Babble string
}

// credentials is what the liar reads of a member's file.
type credentials struct {
	Magic     string          `cbor:"magic"`
	Mesh      trust.PublicKey `cbor:"mesh"`
	Chain     trust.Chain     `cbor:"chain"`
	Secrets   trust.Secrets   `cbor:"secrets"`
	Origin    string          `cbor:"origin"`
	Bootstrap []string        `cbor:"bootstrap"`
}

// liar is a member with a good certificate that claims to hold a root, and sends
// other bytes than those that it is asked for.
type liar struct {
	plan liarPlan
	self credentials
}

// Want implements exchange.Server.
func (l liar) Want(ctx context.Context, _ exchange.Peer, req exchange.Request, w exchange.Responder) {
	if req.Level > 0 || req.Root != l.plan.Root { // it does not know the map
		w.Absent(req.Indexes...)
		return
	}
	lie := make([]byte, content.ChunkSizeDefault)
	for _, index := range req.Indexes {
		if w.Data(ctx, index, exchange.Object{Body: lie}) != nil {
			return
		}
	}
}

// Introduce implements exchange.Server.
func (l liar) Introduce(context.Context, exchange.Peer, []byte) error { return nil }

// Bitmaps implements exchange.Server: everything is claimed.
func (l liar) Bitmaps(ctx context.Context, _ exchange.Peer, _ content.CID, send func(*content.Bitmap) error) error {
	var all content.Bitmap
	for i := range l.plan.Blocks {
		all.Add(i)
	}
	if err := send(&all); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// Call implements exchange.Answerer: members ask for the farm.
func (l liar) Call(_ context.Context, _ exchange.Peer, method string, _ []byte) ([]byte, error) {
	if method != "farm" {
		return nil, fmt.Errorf("call %q: %w", method, content.ErrNotFound)
	}
	return []byte(l.self.Chain.Identity().Farm), nil
}

// lie is the main of a liar.
func lie(text string) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var l liar
	err := json.Unmarshal([]byte(text), &l.plan)
	if err == nil {
		err = l.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "liar:", err)
		return 1
	}
	return 0
}

func (l liar) run(ctx context.Context) error {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGUSR1)
	key, err := trust.LoadKey(filepath.Join(l.plan.Data, "identity.key"))
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(l.plan.Data, "membership"))
	if err == nil {
		err = content.NewCodec().Unmarshal(b, &l.self)
	}
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := swarm.New(swarm.Config{Identity: key, Mesh: l.self.Mesh, Listen: []string{l.plan.Listen}, Bootstrap: l.self.Bootstrap, Log: log})
	if err != nil {
		return err
	}
	x, err := exchange.New(exchange.Config{Host: s.Host(), Ledger: identity.New(trust.NewVerifier(l.self.Mesh), time.Now), Chain: l.self.Chain, Server: l, Answerer: l, Log: log})
	if err == nil {
		err = s.Listen()
	}
	if err == nil {
		err = s.Announce(swarm.KeyFor(content.Mesh(), l.plan.Root, l.self.Secrets.Announce))
	}
	if err != nil {
		return err
	}
	neighbours, err := farm.New(farm.Config{
		Signer: trust.Signer{Key: key, Chain: l.self.Chain}, Verifier: trust.NewVerifier(l.self.Mesh), Bind: l.plan.FarmBind, Join: l.plan.FarmJoin,
		Key: l.self.Secrets.Gossip, Addrs: s.Info().Addrs, Log: log,
	})
	if err == nil {
		err = neighbours.Start()
	}
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error { return x.Run(ctx) })
	group.Go(func() error { return neighbours.Run(ctx) })
	if l.plan.Babble != "" {
		group.Go(func() error {
			select {
			case <-told:
				return l.babble(ctx, s)
			case <-ctx.Done():
				return nil
			}
		})
	}
	return group.Wait()
}

// babble opens streams to a member and sends noise, until it is not let in.
func (l liar) babble(ctx context.Context, s *swarm.Swarm) error {
	info, err := swarm.ParseAddr(l.plan.Babble)
	if err != nil {
		return err
	}
	for _, noise := range garbage() {
		if s.Connect(ctx, info) != nil {
			return nil
		}
		stream, err := s.Host().NewStream(ctx, info.ID, protocol.ID(wire.ProtocolID(l.self.Mesh)))
		if err != nil {
			return nil
		}
		stream.SetDeadline(time.Now().Add(garbagePatience))
		stream.Write(noise) // cut short when it is refused
		stream.CloseWrite()
		io.Copy(io.Discard, stream)
		stream.Reset()
	}
	return nil
}

// corrupt puts a liar in the place of a node, which has joined properly.
func corrupt(t *testing.T, n *lab.Node, plan liarPlan, neighbours ...*lab.Node) {
	t.Helper()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	plan.Data, plan.Listen, plan.FarmBind = n.Data, fmt.Sprintf("/ip4/%s/tcp/4001", n.Host.Addr()), fmt.Sprintf("%s:7946", n.Host.Addr())
	for _, other := range neighbours {
		plan.FarmJoin = append(plan.FarmJoin, fmt.Sprintf("%s:7946", other.Host.Addr()))
	}
	text, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Impersonate(t.Context(), []string{liarVariable + "=" + string(text)}, self); err != nil {
		t.Fatal(err)
	}
}

// about is a plan to lie about an image.
func about(image api.Image) liarPlan {
	return liarPlan{Root: image.CID, Blocks: uint64(image.Size / content.ChunkSizeDefault)}
}

// idOf is the peer ID of a node that runs.
func idOf(t *testing.T, n *lab.Node) string {
	t.Helper()
	return get[api.Status](t, n, "/api/status").Self.ID
}

// stateOf is how a node sees a member, "" if it knows none of that ID.
func stateOf(t *testing.T, n *lab.Node, id string) string {
	t.Helper()
	for _, p := range get[api.Peers](t, n, "/api/peers").Peers {
		if p.ID == id {
			return p.State
		}
	}
	return ""
}

// TestLiarOfTheFarm: a member of the farm sends other bytes. The reader gets the
// right ones, sets the member aside, says so and bans nobody.
func TestLiarOfTheFarm(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "a", "a")
	from, reader, bad := nodes[0], nodes[1], nodes[2]
	path, sum := disk(t, l.Dir, imageSize())
	run(t, from, "image", "import", "disk", path)
	id := idOf(t, bad)
	image := get[api.Image](t, from, "/api/images/disk")
	corrupt(t, bad, about(image), from, reader)
	until(t, "the liar is in the farm", func(context.Context) bool { return stateOf(t, reader, id) == "alive" })
	readAll(t, []*lab.Node{reader}, "v", "disk", sum)
	lies, banned := metric(t, reader, "grange_fetch_peer_lies_total"), metric(t, reader, "grange_fetch_banned_peers_total")
	t.Logf("%.0f lies, %.0f banned, the liar is %q", lies, banned, stateOf(t, reader, id))
	if lies < 1 || banned > 0 {
		t.Errorf("%.0f lies were counted, and %.0f members banned", lies, banned)
	}
	if state := stateOf(t, reader, id); state != "set aside" {
		t.Errorf("the liar is %q, want set aside", state)
	}
	if got := store.Sent("packs/"); got > int64(image.Stored/20) { // a lead that lies costs little
		t.Errorf("the store sent %d bytes of packs that the farm holds", got)
	}
}

// TestLiarFromElsewhere: a member of another farm sends other bytes. The reader
// gets the right ones and bans the stranger.
func TestLiarFromElsewhere(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "b", "c")
	from, bad, reader := nodes[0], nodes[1], nodes[2]
	path, sum := disk(t, l.Dir, imageSize())
	run(t, from, "image", "import", "disk", path)
	id := idOf(t, bad)
	corrupt(t, bad, about(get[api.Image](t, from, "/api/images/disk")))
	until(t, "the liar is back in the mesh", func(context.Context) bool { return stateOf(t, reader, id) == "connected" })
	readAll(t, []*lab.Node{reader}, "v", "disk", sum)
	lies, banned := metric(t, reader, "grange_fetch_peer_lies_total"), metric(t, reader, "grange_swarm_banned_members")
	t.Logf("%.0f lies, %.0f banned, the liar is %q", lies, banned, stateOf(t, reader, id))
	table(t, l)
	if lies < 1 || banned != 1 || metric(t, reader, "grange_fetch_banned_peers_total") != 1 {
		t.Errorf("%.0f lies were counted, and %.0f members are banned", lies, banned)
	}
	if state := stateOf(t, reader, id); state == "connected" {
		t.Errorf("the liar is %q still", state)
	}
}

// TestBabblers: members send noise where the protocol is spoken. The one of the
// farm is complained of, the stranger banned.
func TestBabblers(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "", "a", "a", "b")
	victim := nodes[0]
	address := get[api.Status](t, victim, "/api/status").Self.Addrs[0]
	for _, c := range []struct {
		n          *lab.Node
		neighbours []*lab.Node
		state      string
		banned     float64
	}{{nodes[1], nodes[:1], "alive", 0}, {nodes[2], nil, "connected", 1}} {
		before, id := metric(t, victim, "grange_exchange_violations_total"), idOf(t, c.n)
		corrupt(t, c.n, liarPlan{Babble: address}, c.neighbours...)
		until(t, c.n.Name+" is back", func(context.Context) bool { return stateOf(t, victim, id) == c.state })
		if err := c.n.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		until(t, "the noise of "+c.n.Name+" is counted", func(ctx context.Context) bool {
			now, err := victim.Metric(ctx, "grange_exchange_violations_total")
			banned, berr := victim.Metric(ctx, "grange_swarm_banned_members")
			return err == nil && berr == nil && now > before && banned == c.banned
		})
	}
	t.Logf("%.0f violations, %.0f banned", metric(t, victim, "grange_exchange_violations_total"), metric(t, victim, "grange_swarm_banned_members"))
}
