package volumes

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestStateTravels: what was written and flushed on one node is what another reads, after
// a detach and an attach, and after a move; a snapshot of it is what was flushed when it
// was made, on any node, also when the one that made it is gone.
func TestStateTravels(t *testing.T) {
	f := newFarm(t, 3)
	a, b, c := f.nodes[0], f.nodes[1], f.nodes[2]
	w := newWriter(4<<20, 1)
	device := f.create(a, "web", "--size", "4MiB")
	conn := f.dial(device)
	f.steps(w, conn, 20)
	if id := f.run(a, "volume", "snapshot", "web", "--label", "first", "--wait", "durable"); id != "web@1" {
		t.Errorf("the first snapshot is %q", id)
	}
	first := w.disk()
	f.steps(w, conn, 20)
	if err := conn.close(); err != nil {
		t.Fatal(err)
	}
	f.run(a, "volume", "detach", "web")
	device = f.run(b, "volume", "attach", "web", "--transport", "nbd")
	if !bytes.Equal(f.contents(device), w.disk()) {
		t.Error("the next node reads other bytes")
	}
	conn = f.dial(device)
	f.steps(w, conn, 20)
	if err := conn.close(); err != nil {
		t.Fatal(err)
	}
	f.run(b, "volume", "move", "web", get[api.Status](t, c, "/api/status").Self.ID)
	v := get[api.Volume](t, c, "/api/volumes/web")
	if v.State != "attached" || !bytes.Equal(f.contents(v.Device), w.disk()) {
		t.Errorf("where it was moved: %+v", v)
	}
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.nodes[1:] {
		if !bytes.Equal(f.exported(n, "snapshot:web@1"), first) {
			t.Errorf("%s reads another snapshot", n.Name)
		}
	}
	s := get[[]api.Snapshot](t, b, "/api/snapshots?volume=web")
	if len(s) != 1 || s[0].ID != "web@1" || s[0].Label != "first" || !s[0].Durable {
		t.Errorf("%+v", s)
	}
	f.run(c, "volume", "rollback", "web@1", "--json")
	if got := f.contents(get[api.Volume](t, c, "/api/volumes/web").Device); !bytes.Equal(got, first) {
		t.Error("rolled back, it is another disk")
	}
}

// TestForkOfAnAttachedVolume: a node makes a volume of one that another node writes to; it
// is what was flushed there, no matter what comes later, and what is written to it stays
// its own.
func TestForkOfAnAttachedVolume(t *testing.T) {
	f := newFarm(t, 2)
	a, b := f.nodes[0], f.nodes[1]
	w := newWriter(4<<20, 1)
	conn := f.dial(f.create(a, "web", "--size", "4MiB"))
	f.steps(w, conn, 20)
	for _, n := range []int{0, 1} {
		node, name := f.nodes[n], fmt.Sprintf("fork%d", n)
		before := w.disk()
		device := f.create(node, name, "--from", "volume:web")
		f.steps(w, conn, 5)
		if !bytes.Equal(f.contents(device), before) {
			t.Errorf("%s has other bytes", name)
		}
		own := newWriter(4<<20, 2)
		f.steps(own, f.dial(device), 5)
	}
	if err := w.lost(f.contents(get[api.Volume](t, a, "/api/volumes/web").Device)); err != nil {
		t.Error(err)
	}
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	p := f.problem(b, http.MethodPut, "/api/volumes/late", `{"from": "volume:web"}`)
	if p.Status != http.StatusConflict || !strings.Contains(p.Detail, "at=folded") {
		t.Errorf("while the node of it is away: %+v", p)
	}
}

// TestWritesWithoutAnOrigin: a volume is rewritten again and again with the origin away,
// and takes no more of the disk than twice what it is, and the slack of the design.
func TestWritesWithoutAnOrigin(t *testing.T) {
	size, times := soak.Of(96, 1024), soak.Of(12, 50) // MiB
	limit := int64(2*size)<<20 + 256<<20
	f := newFarm(t, 1)
	n := f.nodes[0]
	c := f.dial(f.create(n, "web", "--size", fmt.Sprintf("%dMiB", size)))
	if err := f.store.Stop(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	for pass := range times {
		for at := range size {
			for i := range len(p) / block {
				fill(p[i*block:][:block], at*len(p)/block+i, uint64(pass+1))
			}
			if err := c.write(p, int64(at)<<20); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
		if v := get[api.Volume](t, n, "/api/volumes/web"); v.DiskBytes > limit || v.Lag == 0 {
			t.Errorf("after %d: %d bytes on the disk, want %d at most; lag %d", pass+1, v.DiskBytes, limit, v.Lag)
		}
	}
	if err := f.store.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "a snapshot is in the bucket", func(ctx context.Context) bool { // once the origin was seen to be back
		_, err := n.Run(ctx, "volume", "snapshot", "web", "--wait", "durable")
		return err == nil
	})
	until(t, "all of it is in the bucket", func(context.Context) bool {
		v := get[api.Volume](t, n, "/api/volumes/web")
		return v.Lag == 0 && !v.FoldedAt.IsZero()
	})
}
