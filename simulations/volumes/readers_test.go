package volumes

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/simulations/lab"
)

// TestReadersBesideAWriter: two nodes read a volume that a third writes, folds and cuts, that
// is stopped, and that a fourth takes over: each byte by byte as the bucket had it when it
// came, whatever goes from there since, and over a kill of its own. Nobody who has it open
// sees it change; who asks again when nobody has gets what is newer.
func TestReadersBesideAWriter(t *testing.T) {
	f := newFarm(t, 4)
	a, b, c, d := f.nodes[0], f.nodes[1], f.nodes[2], f.nodes[3]
	reads := func(n *lab.Node, want []byte) {
		t.Helper()
		if v := f.volume(n, "web"); v.State != terms.StateReading || !v.ReadOnly || v.Through == 0 || v.FoldedAt.IsZero() || !bytes.Equal(f.contents(v.Device), want) {
			t.Errorf("%s reads other bytes: %+v", n.Name, v)
		}
	}
	attach := func(n *lab.Node) string {
		return f.run(n, "volume", "attach", "web", "--readonly", "--transport", "nbd")
	}
	w := newWriter(4<<20, 1)
	device := f.create(a, "web", "--size", "4MiB", "--durability", "origin")
	conn := f.dial(device)
	f.steps(w, conn, 20)
	f.run(a, "volume", "snapshot", "web", "--wait", "durable") // brings it to the bucket, in the tails that are there
	first := w.disk()
	attach(b)
	reads(b, first)
	f.steps(w, conn, 20)
	f.run(a, "image", "promote", "volume:web", "golden") // folds it into chunks, and cuts those
	second := w.disk()
	attach(c)
	if err := conn.close(); err != nil {
		t.Fatal(err)
	}
	reads(c, second)
	if err := f.store.Stop(); err != nil {
		t.Fatal(err)
	}
	attach(d) // of what the farm has
	reads(d, second)
	if err := errors.Join(c.Kill(), c.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	until(t, "the reader is back", func(context.Context) bool { return f.volume(c, "web").State == terms.StateReading })
	reads(c, second)
	if err := f.store.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.run(d, "volume", "detach", "web")
	ended := f.write(w, device, 20)
	reads(b, first)
	reads(c, second)
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := a.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	taken := f.run(d, "volume", "attach", "web", "--takeover", "--transport", "nbd")
	if err := b.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the reader is back", func(context.Context) bool { return f.volume(b, "web").State == terms.StateReading })
	open := f.dial(f.volume(b, "web").Device)
	w.seen(f.contents(taken))
	on := newWriter(4<<20, 2)
	f.steps(on, f.dial(taken), 5)
	f.run(d, "volume", "snapshot", "web", "--wait", "durable")
	if err := a.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the old writer's client goes on")
	}
	attach(b)
	reads(b, first)
	reads(c, second)
	if err := open.write(make([]byte, block), 0); !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EROFS) {
		t.Errorf("a write: %v", err)
	}
	if err := errors.Join(open.flush(), open.close()); err != nil {
		t.Error(err)
	}
	until(t, "the client has left", func(context.Context) bool {
		attach(b)
		return bytes.Equal(f.contents(f.volume(b, "web").Device), f.contents(taken))
	})
	if ls := f.run(b, "volume", "ls"); !strings.Contains(ls, "reading") {
		t.Errorf("listed as %s", ls)
	}
	if p := f.problem(b, http.MethodPut, "/api/volumes/web", "{}"); p.Code != "attached" {
		t.Errorf("attached for writing beside that: %+v", p)
	}
	if p := f.problem(d, http.MethodDelete, "/api/volumes/web", ""); p.Code != "in_use" {
		t.Errorf("removed beside readers: %+v", p)
	}
	f.run(b, "volume", "detach", "web")
	f.run(c, "volume", "detach", "web")
	if v := get[[]api.Volume](t, c, "/api/volumes"); len(v) != 0 {
		t.Errorf("left: %+v", v)
	}
}
