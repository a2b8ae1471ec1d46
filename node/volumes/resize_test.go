package volumes

import (
	"bytes"
	"errors"
	"testing"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

// TestResizeAndLimits changes both of a volume that is served, and starts it anew.
func TestResizeAndLimits(t *testing.T) {
	w := newWorld(t)
	w.cfg.Registry = newStore()
	w.create(t, "disk")
	for name, err := range map[string]error{"disk": nil, "other": content.ErrNotFound} {
		if _, got := w.SetLimits(t.Context(), name, Limits{IOPS: 7, BytesPerSecond: 8 << 20}); !errors.Is(got, err) {
			t.Errorf("limits of %s: %v, want %v", name, got, err)
		}
	}
	for size, want := range map[int64]error{4 << 20: nil, 1 << 19: content.ErrConflict, 8<<20 + 1: content.ErrInvalid} {
		if _, err := w.Resize(t.Context(), "disk", size); !errors.Is(err, want) {
			t.Errorf("resized to %d: %v, want %v", size, err, want)
		}
	}
	if _, err := w.SetLimits(t.Context(), "disk", Limits{IOPS: -1}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("limits below zero: %v", err)
	}
	check := func(w *world) {
		t.Helper()
		d := w.device("disk")
		if l := d.front.Limits(); l.IOPS != 7 || l.BytesPerSecond != 8<<20 || d.front.Geometry().Size != 4<<20 {
			t.Errorf("it is served with %+v, of %d bytes", l, d.front.Geometry().Size)
		}
		if view, err := w.Get("disk"); err != nil || view.Size != 4<<20 {
			t.Errorf("it has %d bytes: %v", view.Size, err)
		}
	}
	check(w)
	if _, err := w.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Resize(t.Context(), "disk", 8<<20); !errors.Is(err, content.ErrConflict) {
		t.Errorf("resized while it is detached: %v", err)
	}
	if _, _, err := w.Put(t.Context(), "disk", Spec{}); err != nil {
		t.Fatal(err)
	}
	check(w)
}

// TestResizeBehindSnapshots: snapshots that are not durable yet become so although the volume
// has grown since, with the size that they had, and the volume goes on being folded.
func TestResizeBehindSnapshots(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	states := map[string][]byte{}
	for i, size := range []int{testSize, testSize + 512, 2 * testSize} { // the first chunk behind the end is none of the snapshot's
		if _, err := p.a.Resize(t.Context(), "disk", int64(size)); err != nil {
			t.Fatal(err)
		}
		shadow := make([]byte, size)
		for off := 0; off < size; off += testSize / 4 { // as much as has it go as chunks
			piece := bytes.Repeat([]byte{byte(i + 1)}, min(testSize/4, size-off))
			copy(shadow[off:], piece)
			if err := p.a.device("disk").vol.WriteAt(t.Context(), piece, int64(off), false); err != nil {
				t.Fatal(err)
			}
		}
		made, err := p.a.Snapshot(t.Context(), "disk", terms.SnapshotSpec{})
		if err != nil || made.Durable {
			t.Fatalf("%+v, %v", made, err)
		}
		states[made.ID] = shadow
	}
	if _, err := p.a.Resize(t.Context(), "disk", 4*testSize); err != nil {
		t.Fatal(err)
	}
	for id, want := range states {
		if err := p.a.Settle(t.Context(), id); err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		if !bytes.Equal(p.b.exported(t, "snapshot:"+id), want) {
			t.Errorf("%s has other bytes elsewhere", id)
		}
	}
	if _, err := p.a.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	if view := p.b.put(t, "disk", Spec{}); view.Size != 4*testSize {
		t.Errorf("it has %d bytes elsewhere", view.Size)
	}
}
