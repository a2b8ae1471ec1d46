package farm

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// start runs a member on a free port of loopback.
func start(t *testing.T, name, node string, key byte, join ...string) (f *Farm, stop func()) {
	t.Helper()
	f, err := New(Config{Name: name, Node: node, Bind: "127.0.0.1:0", Join: join, Key: [32]byte{key}, Addrs: []string{"/ip4/127.0.0.1/tcp/1"}})
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
	first, _ := start(t, "a", "n0", 1)
	var stops []func()
	all := []*Farm{first}
	for i := range 4 {
		f, stop := start(t, "a", fmt.Sprintf("n%d", i+1), 1, first.Address())
		all, stops = append(all, f), append(stops, stop)
	}
	for _, f := range all {
		await(t, f, 5)
	}
	if m := first.Members()[3]; m.Node != "n3" || len(m.Addrs) != 1 {
		t.Errorf("member %+v", m)
	}
	stops[0]()
	for _, f := range []*Farm{first, all[2], all[3], all[4]} {
		await(t, f, 4)
	}
}

func TestOtherFarmsAndKeysStayApart(t *testing.T) {
	first, _ := start(t, "a", "n0", 1)
	otherFarm, _ := start(t, "b", "n1", 1, first.Address())
	otherKey, _ := start(t, "a", "n2", 2, first.Address())
	right, _ := start(t, "a", "n3", 1, first.Address())
	await(t, right, 2)
	await(t, first, 2)
	for _, f := range []*Farm{otherFarm, otherKey} {
		if n := len(f.Members()); n != 1 {
			t.Errorf("%s of farm %s sees %d members", f.cfg.Node, f.cfg.Name, n)
		}
	}
}

func TestAddressInUse(t *testing.T) {
	first, _ := start(t, "a", "n0", 1)
	f, err := New(Config{Name: "a", Node: "n1", Bind: first.Address()})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(); err == nil {
		t.Error("an address in use was taken")
	}
}
