package farm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a member on a free port of loopback.
func start(t *testing.T, cfg Config) (f *Farm, stop func()) {
	t.Helper()
	cfg.Bind, cfg.Addrs = "127.0.0.1:0", []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return f, stop
}

// configOf is the configuration of a member of farm a, which has the same key
// whenever it is named so.
func configOf(name string, join ...string) Config {
	return Config{Signer: signerOf(name, trust.RoleNode, "a"), Verifier: verifier(), Key: [32]byte{1}, Join: join}
}

func keyNamed(name string) trust.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	key, err := trust.PrivateKeyFromSeed(seed[:])
	if err != nil {
		panic(err)
	}
	return key
}

func verifier() *trust.Verifier { return trust.NewVerifier(keyNamed("mesh").Public()) }

// signerOf is a member of the mesh.
func signerOf(name string, role trust.Role, farm string) trust.Signer {
	key := keyNamed(name)
	chain, err := trust.Signer{Key: keyNamed("mesh")}.Issue(trust.Identity{Key: key.Public(), Role: role, Farm: farm}, time.Now())
	if err != nil {
		panic(err)
	}
	return trust.Signer{Key: key, Chain: chain}
}

// idNamed is the peer ID of the member of that name.
func idNamed(name string) peer.ID {
	return identity.PeerID(keyNamed(name).Public())
}

// of returns how a farm lists a member, the zero Member if it doesn't.
func (f *Farm) of(name string) Member {
	for _, m := range f.Members() {
		if m.ID == idNamed(name) {
			return m
		}
	}
	return Member{}
}

// await waits until a member sees that many.
func await(t *testing.T, f *Farm, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(f.Members()) != want {
		select {
		case <-f.Changed():
		case <-ctx.Done():
			t.Fatalf("%s sees %d members, want %d", f.self.ID, len(f.Members()), want)
		}
	}
}

func TestMembersSeeEachOther(t *testing.T) {
	first, _ := start(t, configOf("n0"))
	all, stops := []*Farm{first}, []func(){}
	for i := range 4 {
		cfg := configOf(fmt.Sprintf("n%d", i+1), first.Address())
		f, stop := start(t, cfg)
		all, stops = append(all, f), append(stops, stop)
	}
	for _, f := range all {
		await(t, f, 5)
	}
	if m := first.of("n3"); fmt.Sprint(m.Addrs) != "[/ip4/127.0.0.1/tcp/1]" ||
		m.Identity.Key != keyNamed("n3").Public() || m.Identity.Role != trust.RoleNode || m.Identity.Farm != "a" {
		t.Errorf("member %+v", m)
	}
	stops[0]()
	for _, f := range []*Farm{first, all[2], all[3], all[4]} {
		await(t, f, 4)
	}
}

// said is a log that tests read; seen is sent to at each line.
type said struct {
	mu   sync.Mutex // guards b
	b    bytes.Buffer
	seen chan struct{}
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.seen <- struct{}{}:
	default:
	}
	return s.b.Write(p)
}

// awaitText waits until a text was said.
func (s *said) awaitText(t *testing.T, text string) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		all := s.b.String()
		s.mu.Unlock()
		if strings.Contains(all, text) {
			return
		}
		select {
		case <-s.seen:
		case <-late:
			t.Fatalf("%q was not said, but:\n%s", text, all)
		}
	}
}

func TestOtherFarmsAndKeysStayApart(t *testing.T) {
	first, _ := start(t, configOf("n0"))
	otherFarm, otherKey := configOf("n1", first.Address()), configOf("n2", first.Address())
	otherFarm.Signer, otherKey.Key = signerOf("n1", trust.RoleNode, "b"), [32]byte{2}
	var strangers []*Farm
	for _, cfg := range []Config{otherFarm, otherKey} {
		log := &said{seen: make(chan struct{}, 1)}
		cfg.Log = slog.New(slog.NewTextHandler(log, nil))
		f, _ := start(t, cfg)
		log.awaitText(t, "another gossip key, as for a minute after `grange mesh rotate`: failed to join")
		strangers = append(strangers, f)
	}
	right, _ := start(t, configOf("n3", first.Address()))
	await(t, right, 2)
	await(t, first, 2)
	for _, f := range strangers {
		if n := len(f.Members()); n != 1 {
			t.Errorf("%s of farm %s sees %d members", f.self.ID, f.name, n)
		}
	}
}

func TestNeighbourThatStartsLate(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	log := &said{seen: make(chan struct{}, 1)}
	cfg := configOf("n0", address)
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	early, _ := start(t, cfg)
	log.awaitText(t, "connection refused")
	if _, alone := early.Lost(); alone == nil || strings.ContainsAny(alone.Error(), "\n\t") || strings.Contains(alone.Error(), "occurred") {
		t.Errorf("it is alone because of %q", alone)
	}
	cfg = configOf("n1")
	cfg.Bind = address
	late, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- late.Run(ctx) }()
	await(t, early, 2)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAddressInUse(t *testing.T) {
	first, _ := start(t, configOf("n0"))
	cfg := configOf("n1")
	cfg.Bind = first.Address()
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(); !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Start = %v", err)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"seed": func(c *Config) { c.Signer = signerOf("n0", trust.RoleSeed, "a") }, "no certificate": func(c *Config) { c.Signer.Chain = nil },
		"another's": func(c *Config) { c.Signer.Key = keyNamed("n1") }, "no verifier": func(c *Config) { c.Verifier = nil }, "key": func(c *Config) { c.Key = [32]byte{} },
		"address": func(c *Config) { c.Addrs = []ma.Multiaddr{ma.StringCast("/dns4/" + strings.Repeat("x", 300))} }, "bind": func(c *Config) { c.Bind = "7946" },
		"host": func(c *Config) { c.Bind = "nowhere:1" }, "port": func(c *Config) { c.Bind = "127.0.0.1:70000" },
	} {
		cfg := configOf("n0")
		change(&cfg)
		f, err := New(cfg)
		if err == nil {
			err = f.Start()
		}
		if !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func TestComplaintsAreRare(t *testing.T) {
	log := &said{seen: make(chan struct{}, 1)}
	m := newMetrics(nil)
	c := complaints{slog.New(slog.NewTextHandler(log, nil)), m.complaints, rate.NewLimiter(rate.Every(complaintEvery), complaintBurst)}
	for range 100 {
		fmt.Fprintln(c, "[ERR] memberlist: Conflicting address for \x1b]0;owned\a\u009b2J")
		fmt.Fprintln(c, "[DEBUG] memberlist: something else")
	}
	if n := strings.Count(log.b.String(), "\n"); n != complaintBurst {
		t.Errorf("%d lines", n)
	}
	if strings.ContainsAny(log.b.String(), "\x1b\a\u009b") || strings.Contains(log.b.String(), `\x1b`) {
		t.Errorf("a name's escape codes are in the log: %q", log.b.String())
	}
}

func TestMetricsHaveUniqueNames(t *testing.T) {
	f, err := New(configOf("n0"))
	if err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewPedanticRegistry()
	for _, c := range f.Collectors() {
		if err := r.Register(c); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Gather(); err != nil {
		t.Error(err)
	}
}
