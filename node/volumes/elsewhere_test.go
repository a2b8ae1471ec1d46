package volumes

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// held is a registry in which another node holds a name.
type held struct {
	*nothing
	record  catalog.Record
	deleted bool
}

func (h *held) Volume(_ context.Context, name string) (catalog.Record, error) {
	if h.deleted || name != h.record.Name {
		return catalog.Record{}, content.ErrNotFound
	}
	return h.record, nil
}

func (h *held) DeleteVolume(context.Context, catalog.Record) error {
	h.deleted = true
	return nil
}

// TestNameHeldElsewhere: each command on another node says who has the name, where, since
// when, and what to do; rm does not say that it is gone, and frees it only where that
// node is away and it is forced.
func TestNameHeldElsewhere(t *testing.T) {
	w := newWorld(t)
	body, err := catalog.Volume{ID: [16]byte{1}, Size: 1 << 20, Durability: durabilityLocal, Epoch: 1, Holder: trust.NewPrivateKey().Public(), State: catalog.Attached}.Encode(w.codec)
	if err != nil {
		t.Fatal(err)
	}
	h := &held{nothing: w.origin, record: catalog.Record{Envelope: trust.Envelope{Kind: content.KindVolume, Name: "web1", Farm: "lyon", Version: 1, SignedAt: time.Unix(1e9, 0), Body: body}}}
	away := true
	w.cfg.Registry = h
	w.cfg.Holder = func(context.Context, trust.PublicKey) (string, bool) { return "db1 of farm lyon", away }
	said := func(what string, err error, want ...string) {
		t.Helper()
		for _, text := range append(want, "db1 of farm lyon", "2001-09-09T01:46:40Z") {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v; want %q in it", what, err, text)
			}
		}
	}
	_, err = w.Find(t.Context(), "web1")
	said("show", err, "volume rm web1 --force", "lyon")
	_, err = w.Detach(t.Context(), "web1", false)
	said("detach", err)
	_, _, err = w.Put(t.Context(), "web1", Spec{})
	said("attach", err)
	_, _, err = w.Put(t.Context(), "web1", Spec{Size: 1 << 20, Transport: transportNBD})
	said("create", err)
	if err = w.Remove(t.Context(), "web1", false); !errors.Is(err, content.ErrConflict) {
		t.Errorf("rm: %v", err)
	}
	said("rm", err)
	away = false
	said("rm by force of one that is here", w.Remove(t.Context(), "web1", true), "there")
	if away = true; h.deleted {
		t.Fatal("the name is gone")
	}
	if err := w.Remove(t.Context(), "web1", true); err != nil || !h.deleted {
		t.Errorf("rm by force: %v, deleted %v", err, h.deleted)
	}
	if err := w.Remove(t.Context(), "web1", false); err != nil {
		t.Errorf("rm of an absent one: %v", err)
	}
	if _, err = w.Find(t.Context(), "web1"); !errors.Is(err, content.ErrNotFound) || !strings.Contains(err.Error(), "of the mesh") {
		t.Errorf("show of an absent one: %v", err)
	}
	w.cfg.Registry = w.origin
	if err := w.Remove(t.Context(), "web1", false); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("rm while nobody can be asked: %v", err)
	}
}
