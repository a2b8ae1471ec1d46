package swarm

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// start runs a member; stop ends it and reports what Run returned.
func start(t *testing.T, mesh trust.PublicKey, bootstrap ...string) (s *Swarm, stop func()) {
	t.Helper()
	s, err := New(Config{Identity: trust.NewPrivateKey(), Mesh: mesh, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Bootstrap: bootstrap})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
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

func TestAnnouncementsAreFoundAcrossTheMesh(t *testing.T) {
	mesh := trust.NewPrivateKey().Public()
	first, _ := start(t, mesh)
	var members []*Swarm
	for range 12 {
		m, _ := start(t, mesh, first.Addrs()...)
		members = append(members, m)
	}
	stranger, _ := start(t, trust.NewPrivateKey().Public(), first.Addrs()...)
	k := KeyFor(content.Mesh(), content.Sum([]byte("root")), [32]byte{1})
	if err := members[3].Announce(k); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	found := false
	for !found && ctx.Err() == nil {
		for info := range members[9].Find(ctx, k) {
			found = found || info.ID == members[3].ID()
			break
		}
	}
	if !found {
		t.Error("the announcement was not found")
	}
	for info := range stranger.Find(ctx, k) {
		t.Errorf("a member of another mesh found %s", info.ID)
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
	id, err := PeerID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Identity: key})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.ID() != id {
		t.Errorf("host %s, key %s", s.ID(), id)
	}
	if back, err := PublicKey(id); err != nil || back != key.Public() {
		t.Errorf("PublicKey = %s, %v", back, err)
	}
}

func TestBannedMemberIsRefused(t *testing.T) {
	mesh := trust.NewPrivateKey().Public()
	a, _ := start(t, mesh)
	b, _ := start(t, mesh)
	info, err := ParseAddr(b.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Connect(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	a.Ban(b.ID(), time.Minute)
	if err := a.Connect(t.Context(), info); err == nil {
		t.Error("dialled a banned member")
	}
	if !a.Banned(b.ID()) || a.Banned(a.ID()) {
		t.Error("the list of bans is wrong")
	}
}

func TestBadAddressesAreRefused(t *testing.T) {
	for _, cfg := range []Config{{Listen: []string{"10.0.0.1:80"}}, {Bootstrap: []string{"/ip4/10.0.0.1/tcp/1"}}, {Bootstrap: []string{"x"}}} {
		cfg.Identity = trust.NewPrivateKey()
		if s, err := New(cfg); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", cfg, err)
			if err == nil {
				s.Close()
			}
		}
	}
	a, _ := start(t, trust.NewPrivateKey().Public())
	info, err := ParseAddr(a.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Identity: trust.NewPrivateKey(), Listen: []string{info.Addrs[0].String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Listen(); err == nil {
		t.Error("an address in use was taken")
	}
}
