package swarm

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
)

// party is a swarm with the exchange that proves who it is, and who others are.
type party struct {
	*Swarm
	key      trust.PrivateKey
	verifier *trust.Verifier
	exchange *exchange.Exchange
}

// join starts a member of the mesh; role "" makes it a stranger, who takes everybody
// for a member.
func join(t *testing.T, mesh trust.PrivateKey, role trust.Role, bootstrap ...string) *party {
	t.Helper()
	p := &party{key: trust.NewPrivateKey(), verifier: trust.NewVerifier(mesh.Public())}
	cfg := Config{Identity: p.key, Mesh: mesh.Public(), Bootstrap: bootstrap, Listen: []string{"/ip4/127.0.0.1/tcp/0"}}
	ledger := identity.New(p.verifier, time.Now)
	var chain trust.Chain
	var err error
	if role != "" {
		cfg.Ledger = ledger
		cfg.Prove = func(ctx context.Context, id peer.ID) bool { _, err := p.exchange.Meet(ctx, id); return err == nil }
		if chain, err = (trust.Signer{Key: mesh}).Issue(trust.Identity{Key: p.key.Public(), Role: role, Farm: "north"}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if p.Swarm, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	p.exchange, err = exchange.New(exchange.Config{
		Host: p.Host(), Ledger: ledger, Chain: chain, OnProved: p.Welcome, OnLost: p.Dismiss,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{p.Swarm.Run, p.exchange.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	return p
}

func (p *party) lists(id peer.ID) bool { return p.dht.RoutingTable().Find(id) != "" }

// TestStrangerThatProvidesEveryKeyIsNotFound: its own announcements are not taken,
// and where a member that lies passes it on as a provider, it is not believed.
func TestStrangerThatProvidesEveryKeyIsNotFound(t *testing.T) {
	mesh := trust.NewPrivateKey()
	first := join(t, mesh, trust.RoleNode)
	member := join(t, mesh, trust.RoleNode, first.Addrs()...)
	stranger := join(t, mesh, "", first.Addrs()...)
	await(t, "meet", func() bool {
		return first.lists(member.ID()) && member.lists(first.ID()) && first.connected(stranger.ID())
	})
	keys := []Key{keyOf("one"), keyOf("another"), keyOf("a third")}
	for _, k := range keys {
		if err := stranger.Announce(k); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Announce(keys[0]); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		await(t, "be told by the stranger", func() bool { return tried(stranger.Swarm, k) })
		if holds(t, first.Swarm, k, stranger.ID()) {
			t.Error("a stranger's announcement is kept")
		}
		lie := peer.AddrInfo{ID: stranger.ID(), Addrs: stranger.host.Addrs()}
		if err := first.dht.ProviderStore().AddProvider(t.Context(), k.cid().Hash(), lie); err != nil {
			t.Fatal(err)
		}
		if !holds(t, first.Swarm, k, stranger.ID()) {
			t.Fatal("the lie was not told")
		}
	}
	await(t, "find the member", func() bool { return finds(t.Context(), member.Swarm, keys[0], first.ID()) })
	for _, k := range keys {
		if finds(t.Context(), member.Swarm, k, stranger.ID()) || finds(t.Context(), first.Swarm, k, stranger.ID()) {
			t.Error("a stranger was found")
		}
	}
	for _, p := range []*party{first, member} {
		isStranger := func(i peer.AddrInfo) bool { return i.ID == stranger.ID() }
		if p.lists(stranger.ID()) || slices.ContainsFunc(p.Peers(), isStranger) {
			t.Error("a stranger is listed as a member")
		}
	}
}

// TestMemberThatNamesManyHidesNobody: a member that lies names more providers, whom it
// has made up, than a search looks at.
func TestMemberThatNamesManyHidesNobody(t *testing.T) {
	mesh := trust.NewPrivateKey()
	first := join(t, mesh, trust.RoleNode)
	liar := join(t, mesh, trust.RoleNode, first.Addrs()...)
	member := join(t, mesh, trust.RoleNode, first.Addrs()...)
	await(t, "meet", func() bool {
		return first.lists(member.ID()) && first.lists(liar.ID()) && member.lists(liar.ID()) && liar.lists(member.ID())
	})
	var keys []Key
	for i := range 8 {
		keys = append(keys, keyOf(fmt.Sprint("root ", i)))
		if err := member.Announce(keys[i]); err != nil {
			t.Fatal(err)
		}
		await(t, "be told", func() bool {
			return holds(t, first.Swarm, keys[i], member.ID()) && holds(t, liar.Swarm, keys[i], member.ID())
		})
		for range 2 * announcedMax {
			made := peer.AddrInfo{ID: idOf(t, trust.NewPrivateKey().Public()), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}}
			if err := liar.dht.ProviderStore().AddProvider(t.Context(), keys[i].cid().Hash(), made); err != nil {
				t.Fatal(err)
			}
		}
	}
	searcher := join(t, mesh, trust.RoleNode, first.Addrs()...) // the announcements do not lie with it
	await(t, "meet all", func() bool {
		return searcher.lists(first.ID()) && searcher.lists(liar.ID()) && searcher.lists(member.ID())
	})
	for _, k := range keys {
		for _, p := range []*party{first, member} { // the liar is the nearest
			searcher.dht.RoutingTable().RemovePeer(p.ID())
		}
		if !finds(t.Context(), searcher.Swarm, k, member.ID()) {
			t.Error("the made-up ones hide the member")
		}
	}
}

// TestStrangersGetNothingFromTheDHT by hand, as an attacker would.
func TestStrangersGetNothingFromTheDHT(t *testing.T) {
	mesh := trust.NewPrivateKey()
	first := join(t, mesh, trust.RoleNode)
	member := join(t, mesh, trust.RoleNode, first.Addrs()...)
	stranger := join(t, mesh, "", first.Addrs()...)
	await(t, "meet", func() bool { return first.lists(member.ID()) && first.connected(stranger.ID()) })
	kad := protocol.ID("/grange/" + mesh.Public().String() + "/kad/1.0.0")
	ask := func(p *party, m *pb.Message) (*pb.Message, error) {
		s, err := p.host.NewStream(t.Context(), first.ID(), kad)
		if err != nil {
			return nil, err
		}
		defer s.Reset()
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(append(binary.AppendUvarint(nil, uint64(len(b))), b...)); err != nil {
			return nil, err
		}
		s.SetReadDeadline(time.Now().Add(patience))
		in := bufio.NewReader(s)
		n, err := binary.ReadUvarint(in)
		if err != nil {
			return nil, err
		}
		b = make([]byte, n)
		for at := 0; at < len(b); {
			k, err := in.Read(b[at:])
			if at += k; err != nil {
				return nil, err
			}
		}
		var answer pb.Message
		return &answer, proto.Unmarshal(b, &answer)
	}
	find := pb.NewMessage(pb.Message_FIND_NODE, []byte(member.ID()), 0)
	if answer, err := ask(member, find); err != nil || len(answer.CloserPeers) == 0 {
		t.Errorf("a member that asks for a member: %v, %v", answer, err)
	}
	for _, kind := range []pb.Message_MessageType{pb.Message_FIND_NODE, pb.Message_GET_PROVIDERS, pb.Message_PING} {
		if answer, err := ask(stranger, pb.NewMessage(kind, []byte(member.ID()), 0)); err == nil {
			t.Errorf("a stranger's %v is answered with %v", kind, answer)
		}
	}
	for _, kind := range []pb.Message_MessageType{pb.Message_PUT_VALUE, pb.Message_GET_VALUE} { // of which there are none
		if answer, err := ask(member, pb.NewMessage(kind, []byte("/pk/x"), 0)); err == nil {
			t.Errorf("a member's %v is answered with %v", kind, answer)
		}
	}
}

func TestRefusedMemberIsCut(t *testing.T) {
	mesh := trust.NewPrivateKey()
	a, b := join(t, mesh, trust.RoleNode), join(t, mesh, trust.RoleNode)
	if err := a.Connect(t.Context(), infoOf(t, b.Swarm)); err != nil {
		t.Fatal(err)
	}
	await(t, "meet", func() bool { return a.lists(b.ID()) && b.lists(a.ID()) })
	a.verifier.Revoke(map[trust.PublicKey]time.Time{b.key.Public(): time.Now()})
	a.exchange.Recheck()
	await(t, "lose the refused member", func() bool { return !a.connected(b.ID()) && !a.lists(b.ID()) && len(a.Peers()) == 0 })
	if err := a.Connect(t.Context(), infoOf(t, b.Swarm)); err == nil {
		t.Error("dialled a refused member")
	}
	b.Connect(t.Context(), infoOf(t, a.Swarm)) // its own side may think for a moment that it went well
	await(t, "refuse the member", func() bool { return !a.connected(b.ID()) })
	a.verifier.Revoke(nil)
	await(t, "take it back", func() bool { return b.Connect(t.Context(), infoOf(t, a.Swarm)) == nil && a.connected(b.ID()) })
}

// TestThousandStreamsOfAStranger: who opens so many is hung up on, and members notice
// nothing.
func TestThousandStreamsOfAStranger(t *testing.T) {
	mesh := trust.NewPrivateKey()
	first := join(t, mesh, trust.RoleNode)
	stranger := join(t, mesh, "")
	if err := stranger.Connect(t.Context(), infoOf(t, first.Swarm)); err != nil {
		t.Fatal(err)
	}
	conn := stranger.host.Network().ConnsToPeer(first.ID())[0]
	for range 1000 {
		if _, err := conn.NewStream(t.Context()); err != nil { // says nothing, not even what it is for
			break
		}
	}
	await(t, "hang up", func() bool { return conn.IsClosed() })
	member := join(t, mesh, trust.RoleNode, first.Addrs()...)
	await(t, "meet a member", func() bool { return first.lists(member.ID()) })
}

func TestSurplusGuestsAreOfTheSiteThatHasMost(t *testing.T) {
	now := time.Now()
	var guests []guest
	add := func(site string, n int, age time.Duration, streams int) {
		for i := range n {
			guests = append(guests, guest{site, now.Add(-age - time.Duration(i)*time.Millisecond), streams})
		}
	}
	add("idle", 3, guestIdle+time.Second, 0)
	add("greedy", 2, time.Second, guestStreams+1)
	add("reader", 4, time.Hour, 1)
	add("newcomer", 1, time.Second, 0)
	add("flood", 500, time.Second, 1)
	closed := map[string]int{}
	for _, i := range surplus(guests, now, guestsMax) {
		closed[guests[i].site]++
	}
	want := map[string]int{"idle": 3, "greedy": 2, "flood": 500 - (guestsMax - 5)}
	if fmt.Sprint(closed) != fmt.Sprint(want) {
		t.Errorf("closed %v, want %v", closed, want)
	}
	if got := surplus(guests[5:10], now, guestsMax); len(got) > 0 {
		t.Errorf("closed %v though there is room", got)
	}
}

// TestProofsAreWaitedForOnce: a stranger costs one wait, and a member that proves
// itself of its own accord is believed at once.
func TestProofsAreWaitedForOnce(t *testing.T) {
	asked, proved := 0, false
	p := newProofs(func(peer.ID) bool { return proved }, func(context.Context, peer.ID) bool { asked++; return false })
	for range 5 {
		if p.wait(t.Context(), "stranger") {
			t.Fatal("a stranger was believed")
		}
	}
	if asked != 1 || !p.doubted("stranger") {
		t.Errorf("asked %d times", asked)
	}
	if proved = true; !p.wait(t.Context(), "stranger") {
		t.Error("a proof is not believed")
	}
	proved = false
	for i := range doubtsMax + 10 {
		p.wait(t.Context(), peer.ID(fmt.Sprint(i)))
	}
	if len(p.doubts) > doubtsMax {
		t.Errorf("%d strangers are remembered", len(p.doubts))
	}
}

// providerKey is the DHT's key of one.
func providerKey(key, member string) ds.Key {
	return ds.NewKey(records.ProvidersKeyPrefix + key + "/" + member)
}

// TestFloodOfAnnouncementsIsBounded and the honest members' stay.
func TestFloodOfAnnouncementsIsBounded(t *testing.T) {
	const each, total = 1000, 3000
	p := newProviders(each, total)
	at := binary.AppendVarint(nil, time.Now().UnixNano())
	for i := range 100 {
		for _, m := range []string{"A", "B", "C"} {
			if err := p.Put(t.Context(), providerKey(fmt.Sprint("HONEST", i), m), at); err != nil {
				t.Fatal(err)
			}
		}
	}
	refused := 0
	for _, m := range []string{"FLOOD1", "FLOOD2", "FLOOD3", "FLOOD4"} {
		for i := range 5 * each {
			if p.Put(t.Context(), providerKey(fmt.Sprint("KEY", i), m), at) != nil {
				refused++
			}
		}
	}
	if p.count > total || refused == 0 {
		t.Errorf("%d announcements are kept, %d were refused", p.count, refused)
	}
	for _, m := range []string{"A", "B", "C"} {
		if n := len(p.of[m]); n != 100 {
			t.Errorf("%d announcements of %s are left", n, m)
		}
	}
}

// TestProvidersKeepWhatTheyAreTold checks the store against a map.
func TestProvidersKeepWhatTheyAreTold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newProviders(1000, 1000)
		model := map[string]int64{}
		name := rapid.SampledFrom([]string{"A", "B", "C", "D"})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, at := providerKey(name.Draw(t, "key"), name.Draw(t, "member")), rapid.Int64().Draw(t, "at")
				if err := p.Put(t.Context(), k, binary.AppendVarint(nil, at)); err != nil {
					t.Fatal(err)
				}
				model[k.String()] = at
			},
			"delete": func(t *rapid.T) {
				k := providerKey(name.Draw(t, "key"), name.Draw(t, "member"))
				if err := p.Delete(t.Context(), k); err != nil {
					t.Fatal(err)
				}
				delete(model, k.String())
			},
			"": func(t *rapid.T) {
				all, err := p.Query(t.Context(), query.Query{Prefix: records.ProvidersKeyPrefix})
				if err != nil {
					t.Fatal(err)
				}
				entries, err := all.Rest()
				some := name.Draw(t, "asked")
				one, failed := p.Query(t.Context(), query.Query{Prefix: records.ProvidersKeyPrefix + some})
				if failed != nil {
					t.Fatal(failed)
				}
				for e := range one.Next() {
					if !strings.HasPrefix(e.Key, records.ProvidersKeyPrefix+some+"/") {
						t.Fatalf("asked for %s: %s", some, e.Key)
					}
				}
				if err != nil || len(entries) != len(model) || p.count != len(model) {
					t.Fatalf("%d announcements, counted %d, want %d, %v", len(entries), p.count, len(model), err)
				}
				for _, e := range entries {
					at, _ := binary.Varint(e.Value)
					if want, ok := model[e.Key]; !ok || at != want {
						t.Fatalf("%s: %d, want %d, %v", e.Key, at, want, ok)
					}
				}
			},
		})
	})
}
