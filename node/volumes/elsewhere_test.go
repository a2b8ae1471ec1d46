package volumes

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// held is a registry in which another node holds a name.
type held struct {
	*nothing
	record  catalog.Record
	deleted bool
	hearsay bool // a member alone says so
}

func (h *held) Volume(_ context.Context, name string) (catalog.Record, error) {
	if h.deleted || name != h.record.Name {
		return catalog.Record{}, content.ErrNotFound
	}
	return h.record, nil
}

func (h *held) SureVolume(context.Context, string) (catalog.Record, error) {
	if h.hearsay {
		return catalog.Record{}, content.ErrUnavailable
	}
	return h.record, nil
}

func (h *held) Delete(context.Context, catalog.Record) error {
	h.deleted = true
	return nil
}

func newHeld(t *testing.T, w *world, holder trust.PublicKey) *held {
	t.Helper()
	body, err := catalog.Volume{ID: content.VolumeID{1}, Size: 1 << 20, Policy: catalog.PolicyLocal, Epoch: 1, Holder: holder, State: catalog.Attached}.Encode(w.codec)
	if err != nil {
		t.Fatal(err)
	}
	h := &held{nothing: w.origin, record: catalog.Record{Envelope: trust.Envelope{Kind: content.KindVolume, Name: "web1", Farm: "lyon", Version: 1, SignedAt: time.Unix(1e9, 0), Body: body}}}
	w.cfg.Registry = h
	return h
}

// TestFolderIsAway: a name whose record says this node, where the volume's folder is not,
// as while its disk is not mounted, is not free. Each command says so, and what to do; rm
// frees the name by force alone.
func TestFolderIsAway(t *testing.T) {
	w := newWorld(t)
	h := newHeld(t, w, w.cfg.Self)
	said := func(what string, err error) {
		t.Helper()
		for _, text := range []string{w.index.Path(index.Entry{Volume: catalog.Volume{ID: content.VolumeID{1}}}), "this node has had it since 2001-09-09T01:46:40Z", "mount", "volume rm web1 --force"} {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v; want %q in it", what, err, text)
			}
		}
	}
	_, err := w.Find(t.Context(), "web1")
	said("show", err)
	_, _, err = w.Put(t.Context(), "web1", Spec{})
	said("attach", err)
	if _, _, err = w.Put(t.Context(), "web1", Spec{Size: 1 << 20, Transport: terms.NBD}); !errors.Is(err, content.ErrConflict) || w.Count() > 0 {
		t.Errorf("create: %v", err)
	}
	said("create", err)
	if err = w.Remove(t.Context(), "web1", RemoveSpec{}); !errors.Is(err, content.ErrConflict) || h.deleted {
		t.Errorf("rm: %v", err)
	}
	said("rm", err)
	if err := w.Remove(t.Context(), "web1", RemoveSpec{Force: true}); err != nil || !h.deleted {
		t.Errorf("rm by force: %v, deleted %v", err, h.deleted)
	}
	w.create(t, "web1")
}

// TestKilledInACreate ends a node between the record and the folder's name: the volume is
// there when it is back, and served, as the one that was asked for.
func TestKilledInACreate(t *testing.T) {
	w := newWorld(t)
	var left []string
	w.origin.hold = func(string) {
		w.origin.hold = nil
		made, err := os.ReadDir(w.cfg.Dir)
		if err != nil || len(made) != 1 {
			t.Fatalf("%v, %v", made, err)
		}
		left = append(left, made[0].Name())
		if err := os.CopyFS(w.cfg.Dir+"2", os.DirFS(w.cfg.Dir)); err != nil {
			t.Fatal(err)
		}
	}
	w.create(t, "web1")
	w.stop(t)
	if err := errors.Join(os.RemoveAll(w.cfg.Dir), os.Rename(w.cfg.Dir+"2", w.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	w = w.again(t)
	w.openAll(t.Context())
	if got := w.state(t, "web1"); got != terms.StateUncommitted || !strings.HasSuffix(left[0], ".new") {
		t.Errorf("left as %s, it is %s", left, got)
	}
	h := newHeld(t, w, w.cfg.Self)
	e, _ := w.index.Get("web1")
	h.record.Body, _ = e.Volume.Encode(w.codec)
	w.origin.commit = &catalog.TakenError{Current: h.record} // by itself, before
	if err := w.commitLater(t.Context(), "web1"); err != nil || w.state(t, "web1") != terms.StateAttached {
		t.Errorf("%v, it is %s", err, w.state(t, "web1"))
	}
}

// TestHearsayTakesNothingAway: a volume is served on while only one member says that it is
// another's.
func TestHearsayTakesNothingAway(t *testing.T) {
	w := newWorld(t)
	w.create(t, "web1")
	e, _ := w.index.Get("web1")
	h := newHeld(t, w, trust.NewPrivateKey().Public())
	h.hearsay = true
	a := w.device("web1")
	a.right.Stage, a.right.Stamp, a.right.Here = right.Serving, right.StampOf(e.Volume), true // it was registered
	if err := a.happen(t.Context(), right.Due{}); err != nil || !a.gate.IsOpen() {
		t.Errorf("by hearsay: %v", err)
	}
	h.hearsay = false
	if err := a.happen(t.Context(), right.Due{}); !errors.Is(err, content.ErrFenced) || a.gate.IsOpen() {
		t.Errorf("by the origin: %v", err)
	}
}

// TestTakenAwayOnAFullDisk: what can't be written down is closed all the same.
func TestTakenAwayOnAFullDisk(t *testing.T) {
	w := newWorld(t)
	w.create(t, "web1")
	e, _ := w.index.Get("web1")
	d, file := w.device("web1"), filepath.Join(w.index.Path(e), index.FileName)
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil { // so that no file gets its name
		t.Fatal(err)
	}
	w.giveUp(t.Context(), "web1", d, "another has it")
	if err := d.vol.WriteAt(t.Context(), make([]byte, 512), 0, false); !errors.Is(err, content.ErrClosed) {
		t.Errorf("a write: %v, want ErrClosed", err)
	}
	if got := w.state(t, "web1"); got != terms.StateFailed {
		t.Errorf("it is %s", got)
	}
}

// TestNameHeldElsewhere: each command on another node says who has the name, where, since
// when, and what to do; rm does not say that it is gone, and frees it only where that
// node is away and it is forced.
func TestNameHeldElsewhere(t *testing.T) {
	w := newWorld(t)
	h := newHeld(t, w, trust.NewPrivateKey().Public())
	away := true
	w.cfg.Who = func(trust.PublicKey) string { return "db1 of farm lyon" }
	w.cfg.Away = func(context.Context, trust.PublicKey) bool { return away }
	said := func(what string, err error, want ...string) {
		t.Helper()
		for _, text := range append(want, "db1 of farm lyon", "2001-09-09T01:46:40Z") {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v; want %q in it", what, err, text)
			}
		}
	}
	_, err := w.Find(t.Context(), "web1")
	said("show", err, "volume rm web1 --force", "lyon", "volume attach web1 --takeover", "durability local", "until it was made")
	_, err = w.Detach(t.Context(), "web1", false)
	said("detach", err)
	_, _, err = w.Put(t.Context(), "web1", Spec{})
	said("attach", err)
	_, _, err = w.Put(t.Context(), "web1", Spec{Size: 1 << 20, Transport: terms.NBD})
	said("create", err)
	if err = w.Remove(t.Context(), "web1", RemoveSpec{}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("rm: %v", err)
	}
	said("rm", err)
	away = false
	said("rm by force of one that is here", w.Remove(t.Context(), "web1", RemoveSpec{Force: true}), "volume move web1 NODE` there")
	_, _, err = w.Put(t.Context(), "web1", Spec{})
	if said("attach of one that is here", err, "volume move web1 NODE` there"); strings.Contains(err.Error(), "--takeover") || strings.Contains(err.Error(), "--force") {
		t.Errorf("it is told to take what another serves: %v", err)
	}
	if away = true; h.deleted {
		t.Fatal("the name is gone")
	}
	if err := w.Remove(t.Context(), "web1", RemoveSpec{Force: true}); err != nil || !h.deleted {
		t.Errorf("rm by force: %v, deleted %v", err, h.deleted)
	}
	if err := w.Remove(t.Context(), "web1", RemoveSpec{}); err != nil {
		t.Errorf("rm of an absent one: %v", err)
	}
	if _, err = w.Find(t.Context(), "web1"); !errors.Is(err, content.ErrNotFound) || !strings.Contains(err.Error(), "of the mesh") {
		t.Errorf("show of an absent one: %v", err)
	}
	w.cfg.Registry = w.origin
	if err := w.Remove(t.Context(), "web1", RemoveSpec{}); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("rm while nobody can be asked: %v", err)
	}
}
