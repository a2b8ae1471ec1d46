package volumes

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// told is a mesh whose members tell of some records.
type told struct {
	*nothing
	volumes, snapshots []catalog.Record
}

func (x told) Volumes(context.Context) []catalog.Record           { return x.volumes }
func (x told) Snapshots(context.Context, string) []catalog.Record { return x.snapshots }
func (x told) Snapshot(_ context.Context, name string) (catalog.Record, error) {
	i := slices.IndexFunc(x.snapshots, func(r catalog.Record) bool { return r.Name == name })
	if i < 0 {
		return catalog.Record{}, content.ErrNotFound
	}
	return x.snapshots[i], nil
}

// TestVolumesOfTheMesh: those of this node as it sees them, the others with the node that
// has them, none where that was given up.
func TestVolumesOfTheMesh(t *testing.T) {
	w := newWorld(t)
	w.create(t, "own")
	other := trust.NewPrivateKey().Public()
	w.cfg.Called = func(k trust.PublicKey) string { return map[trust.PublicKey]string{other: "db1", w.cfg.Self: "here"}[k] }
	for _, name := range []string{"gave", "left"} {
		w.create(t, name)
		if _, err := w.Detach(t.Context(), name, false); err != nil {
			t.Fatal(err)
		}
		if _, err := w.index.Change(name, func(e *index.Entry) { e.Committed, e.Empty = true, true }); err != nil {
			t.Fatal(err)
		}
	}
	record := func(name string, v catalog.Volume) catalog.Record {
		v.Size, v.Policy = 1<<20, "farm:1"
		b, err := v.Encode(w.codec)
		if err != nil {
			t.Fatal(err)
		}
		return catalog.Record{Envelope: trust.Envelope{Name: name, Farm: "lyon", Body: b}}
	}
	w.cfg.Registry = told{nothing: w.origin, volumes: []catalog.Record{
		record("free", catalog.Volume{ID: content.VolumeID{1}, Holder: other, State: catalog.Released}),
		record("held", catalog.Volume{ID: content.VolumeID{2}, Holder: other, State: catalog.Attached, Holders: []trust.PublicKey{other}, IOPS: 7}),
		record("left", catalog.Volume{ID: content.VolumeID{4}, Holder: other, State: catalog.Attached}),
		record("own", catalog.Volume{ID: content.VolumeID{3}, Holder: w.cfg.Self, State: catalog.Attached}),
		{Envelope: trust.Envelope{Name: "spoilt", Body: []byte("x")}},
	}}
	all, err := w.Everywhere(t.Context())
	if err != nil || len(all) != 5 {
		t.Fatalf("%+v, %v", all, err)
	}
	free, gave, held, left, own := all[0], all[1], all[2], all[3], all[4]
	if gave.Name != "gave" || gave.State != terms.StateReleased || gave.Node != "" { // as far as is known here
		t.Errorf("%+v", gave)
	}
	if left.Name != "left" || left.State != terms.StateAttached || left.Node != identity.PeerID(other).String() || left.NodeName != "db1" { // another has it by now
		t.Errorf("%+v", left)
	}
	if here, err := w.Get("left"); err != nil || here.State != terms.StateReleased || here.Node != "" {
		t.Errorf("%+v, %v", here, err)
	}
	if free.Name != "free" || free.State != "released" || free.Node != "" || free.Farm != "lyon" {
		t.Errorf("%+v", free)
	}
	if held.Name != "held" || held.State != terms.StateAttached || held.Node != identity.PeerID(other).String() || held.Durability != "farm:1" || !slices.Equal(held.Holders, []string{identity.PeerID(other).String()}) || held.Limits.IOPS != 7 {
		t.Errorf("%+v", held)
	}
	if own.Name != "own" || own.Device == "" || own.Node != w.cfg.NodeID || own.NodeName != "here" {
		t.Errorf("%+v", own)
	}
}

// TestSnapshotsOfTheMesh go by number, and say who has what is not in the bucket.
func TestSnapshotsOfTheMesh(t *testing.T) {
	w := newWorld(t)
	other := trust.NewPrivateKey().Public()
	record := func(s catalog.Snapshot) catalog.Record {
		s.Volume, s.Size, s.Holder, s.At.Seq, s.Created = "web", 1<<20, other, 9, time.Unix(1e9, 0)
		b, err := s.Encode(w.codec)
		if err != nil {
			t.Fatal(err)
		}
		return catalog.Record{Envelope: trust.Envelope{Name: s.Ref().RecordName(), Body: b}}
	}
	w.cfg.Registry = told{nothing: w.origin, snapshots: []catalog.Record{
		record(catalog.Snapshot{Number: 10}), record(catalog.Snapshot{Number: 2, Label: "before"}), record(catalog.Snapshot{Orphan: true, Epoch: 3}),
	}}
	all, err := w.Snapshots(t.Context(), "web")
	var ids []string
	for _, s := range all {
		ids = append(ids, s.ID)
	}
	if err != nil || !slices.Equal(ids, []string{"web@2", "web@10", "web@e3-orphan"}) {
		t.Fatalf("%q, %v", ids, err)
	}
	if one, err := w.FindSnapshot(t.Context(), "web@2"); err != nil || one != all[0] || one.Label != "before" || one.Durable || one.Node != identity.PeerID(other).String() {
		t.Errorf("%+v, %v", one, err)
	}
	for id, want := range map[string]error{"web@7": content.ErrNotFound, "web": content.ErrInvalid} {
		if _, err := w.FindSnapshot(t.Context(), id); !errors.Is(err, want) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// TestSnapshotsGoByNumber, and not by the letters of it.
func TestSnapshotsGoByNumber(t *testing.T) {
	want := []string{"a@2", "a@10", "a@e3-orphan", "a.b@1", "b@1"}
	got := slices.Clone(want)
	slices.Sort(got)
	if slices.SortFunc(got, terms.CompareSnapshots); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
