package farm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/golden"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a member on a free port of loopback.
func start(t *testing.T, cfg Config) (f *Farm, stop func()) {
	t.Helper()
	cfg.Bind, cfg.Addrs = "127.0.0.1:0", []string{"/ip4/127.0.0.1/tcp/1"}
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

// configOf is the configuration of a member of farm a.
func configOf(node string, join ...string) Config {
	return Config{Name: "a", Node: node, Key: [32]byte{1}, Join: join}
}

// await waits until a member sees that many.
func await(t *testing.T, f *Farm, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	changed := f.Watch(ctx)
	for len(f.Members()) != want {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s sees %d members, want %d", f.cfg.Node, len(f.Members()), want)
		}
	}
}

func TestMembersSeeEachOther(t *testing.T) {
	first, _ := start(t, configOf("n0"))
	all, stops := []*Farm{first}, []func(){}
	for i := range 4 {
		cfg := configOf(fmt.Sprintf("n%d", i+1), first.Address())
		cfg.LinkMbits = 10_000
		f, stop := start(t, cfg)
		all, stops = append(all, f), append(stops, stop)
	}
	for _, f := range all {
		await(t, f, 5)
	}
	if m := first.Members()[3]; m.Node != "n3" || !slices.Equal(m.Addrs, []string{"/ip4/127.0.0.1/tcp/1/p2p/n3"}) || m.LinkMbits != 10_000 {
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
	otherFarm.Name, otherKey.Key = "b", [32]byte{2}
	var strangers []*Farm
	for _, cfg := range []Config{otherFarm, otherKey} {
		log := &said{seen: make(chan struct{}, 1)}
		cfg.Log = slog.New(slog.NewTextHandler(log, nil))
		f, _ := start(t, cfg)
		log.awaitText(t, "another gossip key")
		strangers = append(strangers, f)
	}
	right, _ := start(t, configOf("n3", first.Address()))
	await(t, right, 2)
	await(t, first, 2)
	for _, f := range strangers {
		if n := len(f.Members()); n != 1 {
			t.Errorf("%s of farm %s sees %d members", f.cfg.Node, f.cfg.Name, n)
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
	late, err := New(Config{Name: "a", Node: "n1", Key: [32]byte{1}, Bind: address})
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

func TestStrangersAreNotListed(t *testing.T) {
	var mu sync.Mutex
	stranger := ""
	cfg := configOf("n0")
	cfg.Admit = func(node string) bool {
		mu.Lock()
		defer mu.Unlock()
		return node != stranger
	}
	f, _ := start(t, cfg)
	start(t, configOf("n1", f.Address()))
	start(t, configOf("n2", f.Address()))
	await(t, f, 3)
	mu.Lock()
	stranger = "n1"
	mu.Unlock()
	f.Recheck()
	if m := f.Members(); len(m) != 2 || m[1].Node != "n2" {
		t.Errorf("members %+v", m)
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
		"name": func(c *Config) { c.Name = "a/b" }, "node": func(c *Config) { c.Node = "" }, "key": func(c *Config) { c.Key = [32]byte{} },
		"address": func(c *Config) { c.Addrs = []string{strings.Repeat("x", 300)} }, "bind": func(c *Config) { c.Bind = "7946" },
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
	m := newMetrics()
	c := newComplaints(slog.New(slog.NewTextHandler(log, nil)), m.complaints)
	for range 100 {
		fmt.Fprintln(c, "[ERR] memberlist: something")
		fmt.Fprintln(c, "[DEBUG] memberlist: something else")
	}
	if n := strings.Count(log.b.String(), "\n"); n != complaintBurst {
		t.Errorf("%d lines", n)
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

func TestMetaGolden(t *testing.T) {
	addrs := []string{"/ip4/10.0.0.5/tcp/4001/p2p/n0", "/ip6/2001:db8::1/udp/4001/quic-v1/p2p/n0"}
	b, err := encodeMeta("n0", addrs, 25_000)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "meta", b)
	if back, speed, err := decodeMeta("n0", b); err != nil || speed != 25_000 || !slices.Equal(back, addrs) {
		t.Errorf("decoded %q, %d, %v", back, speed, err)
	}
}

func TestMetaLeavesOutWhatIsTooMuch(t *testing.T) {
	addrs := slices.Repeat([]string{"/ip6/2001:db8:1111:2222:3333:4444:5555:6666/udp/40001/quic-v1/p2p/n0"}, 30)
	b, err := encodeMeta("n0", addrs, 0)
	if err != nil || len(b) > metaMax {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if back, _, err := decodeMeta("n0", b); err != nil || len(back) < 7 {
		t.Errorf("%d addresses, %v", len(back), err)
	}
}

func FuzzMeta(f *testing.F) {
	b, err := encodeMeta("n0", []string{"/ip4/10.0.0.5/tcp/4001"}, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		addrs, speed, err := decodeMeta("n0", b)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
			return
		}
		again, err := encodeMeta("n0", addrs, speed)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q comes back as %q, %v", b, again, err)
		}
	})
}
