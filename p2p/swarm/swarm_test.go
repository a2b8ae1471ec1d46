package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(siteRole); role != "" {
		if err := runSite(role, os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

const patience = 30 * time.Second

// start runs a member on loopback; stop ends it and reports what Run returned.
func start(t *testing.T, cfg Config) (s *Swarm, stop func()) {
	t.Helper()
	if cfg.Identity == (trust.PrivateKey{}) {
		cfg.Identity = trust.NewPrivateKey()
	}
	if cfg.Listen == nil {
		cfg.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		s.Close()
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// await polls until something that no event tells of has come to be.
func await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ready() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// finds reports whether a search yields a member.
func finds(ctx context.Context, s *Swarm, k Key, id peer.ID) bool {
	for info := range s.Find(ctx, k) {
		if info.ID == id {
			return true
		}
	}
	return false
}

// holds reports whether a member keeps another's announcement.
func holds(t *testing.T, s *Swarm, k Key, id peer.ID) bool {
	t.Helper()
	held, err := s.dht.ProviderStore().GetProviders(t.Context(), k.cid().Hash())
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(held, func(p peer.AddrInfo) bool { return p.ID == id })
}

// tried reports whether a member's announcement went out, well or not.
func tried(s *Swarm, k Key) bool {
	s.announced.mu.Lock()
	defer s.announced.mu.Unlock()
	return !s.announced.keys[k].due.IsZero()
}

func newMesh() trust.PublicKey { return trust.NewPrivateKey().Public() }

// idOf returns the peer ID of a member's key.
func idOf(t *testing.T, k trust.PublicKey) peer.ID {
	t.Helper()
	pub, err := crypto.UnmarshalEd25519PublicKey(k[:])
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func keyOf(name string) Key {
	return KeyFor(content.Mesh(), content.Sum([]byte(name)), [32]byte{1})
}

func infoOf(t *testing.T, s *Swarm) peer.AddrInfo {
	t.Helper()
	info, err := ParseAddr(s.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestAnnouncementsAreFoundAcrossTheMesh(t *testing.T) {
	mesh := newMesh()
	first, _ := start(t, Config{Mesh: mesh})
	k := keyOf("root")
	if err := first.Announce(k); err != nil { // while it is alone
		t.Fatal(err)
	}
	var members []*Swarm
	for range 24 {
		m, _ := start(t, Config{Mesh: mesh, Bootstrap: first.Addrs()})
		members = append(members, m)
	}
	stranger, _ := start(t, Config{Mesh: newMesh(), Bootstrap: first.Addrs()})
	if err := members[3].Announce(k); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Swarm{members[9], members[23]} {
		for _, want := range []*Swarm{first, members[3]} {
			await(t, "find an announcer", func() bool { return finds(t.Context(), m, k, want.ID()) })
		}
	}
	for info := range stranger.Find(t.Context(), k) {
		t.Errorf("a member of another mesh found %s", info.ID)
	}
}

func TestSearchYieldsAtMostItsLimitAndEndsWithItsReader(t *testing.T) {
	mesh := newMesh()
	first, _ := start(t, Config{Mesh: mesh})
	k := keyOf("root")
	for range announcersMax + 5 {
		m, _ := start(t, Config{Mesh: mesh, Bootstrap: first.Addrs()})
		if err := m.Announce(k); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (n int) {
		for range first.Find(t.Context(), k) {
			n++
		}
		return n
	}
	await(t, "find as many as a search yields", func() bool { return count() >= announcersMax })
	for range first.Find(t.Context(), k) {
		break
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for info := range first.Find(ended, keyOf("nobody has it")) {
		t.Errorf("found %s", info.ID)
	}
}

func TestKeysOfPrivateRootsNeedTheSecret(t *testing.T) {
	root := content.Sum([]byte("root"))
	a, b := [32]byte{1}, [32]byte{2}
	if KeyFor(content.Mesh(), root, a) == KeyFor(content.Mesh(), root, b) {
		t.Error("the secret does not matter")
	}
	if KeyFor(content.Public(), root, a) != KeyFor(content.Public(), root, b) {
		t.Error("a public root has two keys")
	}
}

func TestIdentityIsThePeerID(t *testing.T) {
	key := trust.NewPrivateKey()
	s, err := New(Config{Identity: key})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if id := idOf(t, key.Public()); s.ID() != id {
		t.Errorf("host %s, key %s", s.ID(), id)
	}
}

func TestBannedMemberIsRefused(t *testing.T) {
	mesh := newMesh()
	a, _ := start(t, Config{Mesh: mesh})
	b, _ := start(t, Config{Mesh: mesh})
	if err := a.Connect(t.Context(), infoOf(t, b)); err != nil {
		t.Fatal(err)
	}
	await(t, "meet in the routing table", func() bool { return a.dht.RoutingTable().Find(b.ID()) != "" })
	a.Ban(b.ID(), time.Minute, "a test")
	if err := a.Connect(t.Context(), infoOf(t, b)); err == nil {
		t.Error("dialled a banned member")
	}
	await(t, "lose the banned member", func() bool { return !a.connected(b.ID()) && !b.connected(a.ID()) })
	b.Connect(t.Context(), infoOf(t, a)) // its own side may think for a moment that it went well
	await(t, "refuse the banned member", func() bool { return !a.connected(b.ID()) })
}

func TestBadAddressesAreRefused(t *testing.T) {
	for name, cfg := range map[string]Config{
		"listen": {Listen: []string{"10.0.0.1:80"}}, "no peer": {Bootstrap: []string{"/ip4/10.0.0.1/tcp/1"}}, "garbage": {Bootstrap: []string{"x"}},
		"peer only": {Bootstrap: []string{"/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"}},
	} {
		cfg.Identity = trust.NewPrivateKey()
		if s, err := New(cfg); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
			if err == nil {
				s.Close()
			}
		}
	}
}

func TestAddressInUseIsNamed(t *testing.T) {
	a, _ := start(t, Config{})
	text := infoOf(t, a).Addrs[0].String()
	b, err := New(Config{Identity: trust.NewPrivateKey(), Listen: []string{"/ip4/127.0.0.1/tcp/0", text}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Listen(); !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "give a port that is free") || !strings.Contains(err.Error(), text) {
		t.Errorf("Listen = %v", err)
	}
}

// said is a log that tests read.
type said struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

func TestBootstrapMemberThatComesLate(t *testing.T) {
	mesh := newMesh()
	late, stop := start(t, Config{Mesh: mesh})
	key, addrs, listen := late.cfg.Identity, late.Addrs(), infoOf(t, late).Addrs[0].String()
	stop()
	var log said
	m, _ := start(t, Config{Mesh: mesh, Bootstrap: addrs, Log: slog.New(slog.NewTextHandler(&log, nil))})
	await(t, "say that nobody answers", func() bool { return log.count("does not answer") == 1 && m.silent.Load() == 1 })
	start(t, Config{Mesh: mesh, Identity: key, Listen: []string{listen}})
	await(t, "connect", func() bool { return m.connected(late.ID()) })
	await(t, "say that it answers", func() bool { return log.count("answers again") == 1 && m.silent.Load() == 0 })
	if log.count("does not answer") != 1 {
		t.Error("the same was said twice")
	}
}

func TestHangUpIsExplained(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	m, _ := start(t, Config{})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	info := peer.AddrInfo{ID: idOf(t, newMesh()), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/" + port)}}
	if err := m.Connect(t.Context(), info); !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "hung up") {
		t.Errorf("Connect = %v", err)
	}
}

func TestRestartFindsTheMeshByPeersKept(t *testing.T) {
	mesh := newMesh()
	file := filepath.Join(t.TempDir(), "peers")
	other, _ := start(t, Config{Mesh: mesh})
	cfg := Config{Mesh: mesh, Identity: trust.NewPrivateKey(), Bootstrap: other.Addrs(), PeersFile: file}
	before, stop := start(t, cfg)
	await(t, "connect", func() bool { return before.connected(other.ID()) })
	stop()
	cfg.Bootstrap = nil
	after, stop := start(t, cfg)
	await(t, "connect again", func() bool { return after.connected(other.ID()) })
	stop()
	if err := os.WriteFile(file, []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log said
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	start(t, cfg)
	if log.count("can't be read") != 1 {
		t.Error("a corrupt file was not mentioned")
	}
}

// TestRelayCarriesContent reaches a member behind a NAT through a relay, with more
// bytes than the library's relays let pass.
func TestRelayCarriesContent(t *testing.T) {
	mesh := newMesh()
	relay, _ := start(t, Config{Mesh: mesh, reach: network.ReachabilityPublic})
	hidden, _ := start(t, Config{Mesh: mesh, reach: network.ReachabilityPrivate, Listen: []string{}, Bootstrap: relay.Addrs()})
	asker, _ := start(t, Config{Mesh: mesh, Listen: []string{}, Bootstrap: relay.Addrs()}) // nor can it be dialled
	const protocol = "/grange/test"
	const size = 4 << 20
	hidden.Host().SetStreamHandler(protocol, func(s network.Stream) {
		s.Write(make([]byte, size))
		s.Close()
	})
	circuit, err := ParseAddr(relay.Addrs()[0] + "/p2p-circuit/p2p/" + hidden.ID().String())
	if err != nil {
		t.Fatal(err)
	}
	await(t, "reach through the relay", func() bool { return asker.Connect(t.Context(), circuit) == nil })
	s, err := asker.Host().NewStream(t.Context(), hidden.ID(), protocol)
	if err != nil {
		t.Fatal(err)
	}
	if via := transportOf(s.Conn().RemoteMultiaddr()); via != viaRelay {
		t.Errorf("the stream goes via %s", via)
	}
	if n, err := io.Copy(io.Discard, s); n != size || err != nil {
		t.Errorf("%d bytes through the relay, %v", n, err)
	}
	if countConns(asker.host.Network().Conns(), viaRelay) == 0 {
		t.Error("the relayed connection is not counted")
	}
}

func TestMetricsHaveUniqueNames(t *testing.T) {
	s, _ := start(t, Config{Listen: []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}})
	r := prometheus.NewPedanticRegistry()
	for _, c := range s.Collectors() {
		if err := r.Register(c); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
}
