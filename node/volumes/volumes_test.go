package volumes

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// nothing is an origin that does not answer.
type nothing struct{ commit error }

func (nothing) Base(context.Context, content.Ref) (Base, error) {
	return Base{}, content.ErrUnavailable
}

func (nothing) Image(context.Context, Base) (*fetch.Image, error) { return nil, content.ErrUnavailable }

func (nothing) Volume(context.Context, string) (catalog.Record, error) {
	return catalog.Record{}, content.ErrUnavailable
}

func (x *nothing) CommitVolume(context.Context, string, catalog.Volume, *catalog.Record) (catalog.Record, error) {
	return catalog.Record{}, x.commit
}

func (nothing) DeleteVolume(context.Context, catalog.Record) error { return content.ErrUnavailable }

// world is a node's volumes without the node, and the time that they have.
type world struct {
	*Volumes
	origin *nothing
	now    time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{origin: &nothing{content.ErrUnavailable}, now: time.Unix(1e9, 0)}
	dir, err := os.MkdirTemp("", "") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	w.Volumes, err = New(t.Context(), Config{
		Dir: filepath.Join(dir, "volumes"), NBD: func(ctx context.Context) (nbd.Config, error) {
			l, err := nbd.Listen(ctx, "unix:"+filepath.Join(dir, "s"))
			return nbd.Config{Listeners: []net.Listener{l}}, err
		}, NodeID: "node", Library: w.origin, Registry: w.origin,
		Now: func() time.Time { return w.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := errors.Join(w.Run(ctx), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) create(t *testing.T, name string) {
	t.Helper()
	if _, _, err := w.Put(t.Context(), name, Spec{Size: 1 << 20, Transport: transportNBD}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) state(t *testing.T, name string) State {
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
	w.origin.commit = &catalog.TakenError{}
	for _, e := range w.uncommitted() {
		if e.Name == "served.node" {
			continue
		}
		if err := w.commitLater(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]State{"served.node": StateUncommitted, "served.node-2": StateUncommitted, "detached.node": StateDetached} {
		if got := w.state(t, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	exports, err := exports{w.Volumes}.List(t.Context())
	if err != nil || !slices.Equal(exports, []string{"served.node", "served.node-2"}) || w.Count() != 2 {
		t.Errorf("exports: %q, %v; %d are served", exports, err, w.Count())
	}
}

// TestServedLater: what could not be served is tried again, less and less often.
func TestServedLater(t *testing.T) {
	w := newWorld(t)
	w.create(t, "disk")
	if _, err := w.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	e, _ := w.devs.get("disk")
	folder := w.folder(e)
	if err := os.Rename(folder, folder+".away"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Put(t.Context(), "disk", Spec{}); err == nil || w.state(t, "disk") != StateFailed {
		t.Fatalf("without its folder: %v", err)
	}
	try := func(after time.Duration) State {
		w.now = w.now.Add(after)
		w.serveLater(t.Context(), "disk")
		return w.state(t, "disk")
	}
	for range 10 {
		if try(tryAfterMax) != StateFailed {
			t.Fatal("it is served without its folder")
		}
	}
	if err := os.Rename(folder+".away", folder); err != nil {
		t.Fatal(err)
	}
	if early, late := try(tryAfterMax-1), try(1); early != StateFailed || late != StateUncommitted {
		t.Errorf("early it is %s, late it is %s", early, late)
	}
}
