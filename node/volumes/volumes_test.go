package volumes

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
)

// nothing is an origin that does not answer.
type nothing struct {
	commit error
	hold   func(name string) // called by a commit; where it is not nil, it says that names are free
	record *catalog.Volume   // what it has, if anything: then it answers
}

func (n nothing) Base(ctx context.Context, ref content.Ref) (fetch.Root, error) {
	return n.Stands(ctx, ref)
}

func (nothing) Stands(context.Context, content.Ref) (fetch.Root, error) {
	return fetch.Root{}, content.ErrUnavailable
}

func (nothing) Image(context.Context, fetch.Root) (*fetch.Image, error) {
	return nil, content.ErrUnavailable
}

func (x *nothing) Volume(context.Context, string) (catalog.Record, error) {
	switch {
	case x.record == nil && x.hold != nil:
		return catalog.Record{}, content.ErrNotFound
	case x.record == nil:
		return catalog.Record{}, content.ErrUnavailable
	}
	b, err := x.record.Encode(content.NewCodec())
	return catalog.Record{Envelope: trust.Envelope{Farm: testFarm, Body: b}}, err
}

func (x *nothing) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	return x.Volume(ctx, name)
}

func (*nothing) Snapshot(context.Context, string) (catalog.Record, error) {
	return catalog.Record{}, content.ErrUnavailable
}

func (*nothing) Snapshots(context.Context, string) []catalog.Record { return nil }
func (*nothing) Volumes(context.Context) []catalog.Record           { return nil }

func (x *nothing) Commit(_ context.Context, ch catalog.Change) (catalog.Record, error) {
	if x.hold != nil {
		x.hold(ch.Name)
	}
	return catalog.Record{}, x.commit
}

func (nothing) Delete(context.Context, catalog.Record) error { return content.ErrUnavailable }

const testFarm = "lyon"

// world is a node's volumes without the node, and the time that they have.
type world struct {
	*Volumes
	origin  *nothing
	now     time.Time
	stopped bool
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return startWorld(t, dir)
}

// startWorld starts a node's volumes in a folder, which has some or not.
func startWorld(t testing.TB, dir string) *world {
	t.Helper()
	w := &world{origin: &nothing{commit: content.ErrUnavailable}, now: time.Unix(1e9, 0)}
	var err error
	w.Volumes, err = New(t.Context(), Config{
		Dir: filepath.Join(dir, "volumes"), NBD: func(ctx context.Context) (nbd.Config, error) {
			l, err := nbd.Listen(ctx, "unix:"+filepath.Join(dir, "s"))
			return nbd.Config{Listeners: []net.Listener{l}}, err
		}, Self: trust.PublicKey{1}, NodeID: "node", Farm: testFarm, Library: w.origin, Registry: w.origin,
		Who: trust.PublicKey.String, Away: func(context.Context, trust.PublicKey) bool { return true },
		Called: func(trust.PublicKey) string { return "" }, Returned: func() int64 { return 0 },
		Call: func(context.Context, trust.PublicKey, string, []byte) ([]byte, error) {
			return nil, content.ErrUnavailable
		},
		Holders: &holders.Farm{Self: trust.PublicKey{1}, Live: func() []trust.PublicKey { return nil }, Fills: make(chan struct{}, holders.FillsMax), Log: slog.New(slog.DiscardHandler)},
		Now:     func() time.Time { return w.now }, Clock: func() time.Duration { return 0 }, // a slow test is no standstill
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.stop(t) })
	return w
}

// stop ends the volumes; a second one is nothing.
func (w *world) stop(t testing.TB) {
	t.Helper()
	if w.stopped {
		return
	}
	w.stopped = true
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.Run(ctx); err != nil {
		t.Error(err)
	}
}

// run has the doors open until the end of the test.
func (w *world) run(t testing.TB) {
	t.Helper()
	w.stopped = true
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// again starts the volumes anew in their folder.
func (w *world) again(t testing.TB) *world {
	t.Helper()
	w.stop(t)
	return startWorld(t, filepath.Dir(w.cfg.Dir))
}

func (w *world) create(t testing.TB, name string) {
	t.Helper()
	if _, _, err := w.Put(t.Context(), name, Spec{Size: 1 << 20, Transport: terms.NBD}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) state(t testing.TB, name string) terms.State {
	t.Helper()
	view, err := w.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return view.State
}

// TestNameTakenMeanwhile: volumes get another name, those that are served and those
// that are not.
func TestNameTakenMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.create(t, "served")
	w.create(t, "served.node") // made so before
	w.create(t, "detached")
	if _, err := w.Detach(t.Context(), "detached", false); err != nil {
		t.Fatal(err)
	}
	w.origin.record = &catalog.Volume{ID: content.VolumeID{9}, Size: 512, Policy: catalog.PolicyLocal, State: catalog.Attached}
	for _, name := range []string{"detached", "served"} {
		if err := w.commitLater(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]terms.State{"served.node": terms.StateUncommitted, "served.node-2": terms.StateUncommitted, "detached.node": terms.StateDetached} {
		if got := w.state(t, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	exports, err := exports{w.Volumes}.List(t.Context())
	if err != nil || !slices.Equal(exports, []string{"served.node", "served.node-2"}) || w.Count() != 2 {
		t.Errorf("exports: %q, %v; %d are served", exports, err, w.Count())
	}
}

// TestRemoveThatFails: a volume whose client could not be waited for stays, detached, and
// no start serves it again.
func TestRemoveThatFails(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for failed := false; !failed; { // it may end in time
		w.create(t, "disk")
		w.openExport(t, "disk")
		failed = w.Remove(ended, "disk", RemoveSpec{Force: true}) != nil
	}
	if e, ok := w.index.Get("disk"); !ok || e.Attached || w.device("disk") != nil {
		t.Errorf("%+v, %v", e, ok)
	}
}

// openExport has an NBD client open a volume.
func (w *world) openExport(t *testing.T, name string) {
	t.Helper()
	conn, err := net.Dial("unix", filepath.Join(filepath.Dir(w.cfg.Dir), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	const hello = "\x00\x00\x00\x03" + "IHAVEOPT" + "\x00\x00\x00\x07" // then length, name, and no wishes
	ask := binary.BigEndian.AppendUint32([]byte(hello), uint32(len(name)+6))
	ask = append(binary.BigEndian.AppendUint32(ask, uint32(len(name))), name+"\x00\x00"...)
	if _, err := conn.Write(ask); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 18+20)); err != nil { // its hello, and what it says of the export
		t.Fatal(err)
	}
}

// TestServedLater: what could not be served is tried again, less and less often.
func TestServedLater(t *testing.T) {
	w := newWorld(t)
	w.create(t, "disk")
	if _, err := w.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	e, _ := w.index.Get("disk")
	other, err := durable.Lock(filepath.Join(w.index.Path(e), "lock")) // another process has it
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Put(t.Context(), "disk", Spec{}); err == nil || w.state(t, "disk") != terms.StateFailed {
		t.Fatalf("while another has it: %v", err)
	}
	try := func(after time.Duration) terms.State {
		w.now = w.now.Add(after)
		w.serveLater(t.Context(), "disk")
		return w.state(t, "disk")
	}
	for range 10 {
		if try(tryAfterMax) != terms.StateFailed {
			t.Fatal("it is served while another has it")
		}
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if early, late := try(tryAfterMax-1), try(1); early != terms.StateFailed || late != terms.StateUncommitted {
		t.Errorf("early it is %s, late it is %s", early, late)
	}
}

// BenchmarkCreate creates a volume beside 4,000 others, and the first ones.
func BenchmarkCreate(b *testing.B) {
	for _, others := range []int{0, 4000} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			w := newWorld(b)
			for i := range others {
				w.create(b, fmt.Sprintf("other-%d", i))
			}
			n := 0
			for b.Loop() {
				w.create(b, fmt.Sprintf("disk-%d", n))
				n++
			}
		})
	}
}
