package volumes

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

func (f *farm) volume(n *lab.Node, name string) api.Volume {
	f.Helper()
	return get[api.Volume](f.T, n, "/api/volumes/"+name)
}

// TestReleasedVolumeChangesHands: what one node detaches another attaches, with an epoch
// that nobody had; the first does not get it back before it is released again, and neither
// does a name that was removed and made again begin anew.
func TestReleasedVolumeChangesHands(t *testing.T) {
	f := newFarm(t, 2)
	a, b := f.nodes[0], f.nodes[1]
	f.create(a, "web", "--size", "1MiB")
	last := f.volume(a, "web").Epoch
	from, to := a, b
	for range 3 {
		f.run(from, "volume", "detach", "web")
		f.run(to, "volume", "attach", "web", "--transport", "nbd")
		v := f.volume(to, "web")
		if v.Epoch <= last || v.Size != 1<<20 || !v.Confirmed || v.State != terms.StateAttached {
			t.Fatalf("after epoch %d: %+v", last, v)
		}
		if p := f.problem(from, http.MethodPut, "/api/volumes/web", "{}"); p.Code != "held" {
			t.Errorf("attached twice: %+v", p)
		}
		last = v.Epoch
		from, to = to, from
	}
	f.run(from, "volume", "move", "web", get[api.Status](t, to, "/api/status").Self.ID)
	if v := f.volume(to, "web"); v.Epoch <= last {
		t.Errorf("moved, it is %+v", v)
	} else {
		last = v.Epoch
	}
	f.run(to, "volume", "rm", "web")
	f.create(from, "web", "--size", "1MiB")
	if v := f.volume(from, "web"); v.Epoch <= last {
		t.Errorf("made again it has epoch %d, and had %d", v.Epoch, last)
	}
}

// TestTakeoverOfAStoppedNode: the writer is stopped, another takes one of its volumes over,
// and the writer goes on. It acknowledges nothing more of that one, keeps what it had as
// an orphan, and serves the others as before.
func TestTakeoverOfAStoppedNode(t *testing.T) {
	f := newFarm(t, 2)
	writer, taker := f.nodes[0], f.nodes[1]
	w, other := newWriter(1<<20, 1), newWriter(1<<20, 2)
	device := f.create(writer, "web", "--size", "1MiB")
	kept := f.dial(f.create(writer, "other", "--size", "1MiB"))
	for i := range soak.Of(8, 48) {
		f.create(writer, fmt.Sprintf("more-%d", i), "--size", "1MiB")
	}
	f.steps(other, kept, 5)
	epoch := f.volume(writer, "web").Epoch
	ended := f.write(w, device, 20)
	if err := writer.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.run(taker, "volume", "attach", "web", "--takeover", "--transport", "nbd")
	if v := f.volume(taker, "web"); !strings.Contains(v.Detail, fmt.Sprintf("stays there, as snapshot:web@e%d-orphan", epoch)) {
		t.Errorf("what stays behind is not said: %q", v.Detail)
	}
	taken := newWriter(1<<20, 3)
	f.steps(taken, f.dial(f.volume(taker, "web").Device), 5)
	flushes := w.flush
	if err := writer.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the old writer's client goes on")
	}
	t.Logf("%d flushes, %d of them of the moment in which it was stopped", w.flush, w.flush-flushes)
	until(t, "the volume is served no more", func(context.Context) bool {
		v := f.volume(writer, "web")
		return v.State == terms.StateFailed && strings.Contains(v.Detail, "taken away")
	})
	f.steps(other, kept, 5)
	for _, v := range get[[]api.Volume](t, writer, "/api/volumes") {
		if v.Name != "web" && v.State != terms.StateAttached {
			t.Errorf("%s is %s: %s", v.Name, v.State, v.Detail)
		}
	}
	f.run(writer, "volume", "attach", "web", "--readonly", "--transport", "nbd")
	if err := w.lost(f.contents(f.volume(writer, "web").Device)); err != nil {
		t.Error(err)
	}
	until(t, "what was left is an orphan", func(context.Context) bool {
		files, err := f.store.Files("records/snapshot/")
		return err == nil && strings.Contains(strings.Join(files, " "), fmt.Sprintf("web%%40e%d-orphan", epoch))
	})
	if v := f.volume(taker, "web"); v.Epoch <= epoch || v.State != terms.StateAttached {
		t.Errorf("the taker has %+v", v)
	}
}
