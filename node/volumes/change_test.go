package volumes

import (
	"bytes"
	"errors"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestResize: a volume grows while it is served, keeps what it has, and is as large at the
// next start; it never shrinks, and a record that could not be written leaves it as it was.
func TestResize(t *testing.T) {
	w := newWorld(t)
	records := newStore()
	w.cfg.Registry = records
	w.create(t, "disk")
	data := bytes.Repeat([]byte("x"), 4096)
	if err := w.device("disk").vol.WriteAt(t.Context(), data, 1<<20-4096, true); err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int64]error{1 << 19: content.ErrConflict, 1<<20 + 1: content.ErrInvalid, 0: content.ErrInvalid, content.SizeMax + 512: content.ErrInvalid} {
		if _, err := w.Resize(t.Context(), "disk", size); !errors.Is(err, want) {
			t.Errorf("to %d: %v", size, err)
		}
	}
	if _, err := w.Resize(t.Context(), "other", 1<<21); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("of none: %v", err)
	}
	for range 2 { // again is the same
		if view, err := w.Resize(t.Context(), "disk", 2<<20); err != nil || view.Size != 2<<20 {
			t.Fatalf("%+v, %v", view, err)
		}
	}
	d := w.device("disk").front
	if err := d.WriteAt(t.Context(), data, 2<<20-4096, true); err != nil || d.Geometry().Size != 2<<20 {
		t.Errorf("behind its old end: %v, %+v", err, d.Geometry())
	}
	if body, err := records.body("disk"); err != nil || body.Size != 2<<20 {
		t.Errorf("the record: %+v, %v", body, err)
	}
	again := w.again(t)
	again.cfg.Registry = records
	again.run(t)
	disk, done, err := exports{again.Volumes}.Lookup(t.Context(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	got := make([]byte, 2<<20)
	if err := disk.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got[1<<20-4096:1<<20], data) || !bytes.Equal(got[2<<20-4096:], data) {
		t.Errorf("after another start: %v, or other bytes", err)
	}
}

// TestLimits hold at once, are the volume's wherever it goes, and are lifted by none.
func TestLimits(t *testing.T) {
	w := newWorld(t)
	w.cfg.Registry = newStore()
	w.create(t, "disk")
	for _, limits := range []Limits{{IOPS: 10, BytesPerSecond: 1 << 20}, {IOPS: 20}, {}} {
		view, err := w.SetLimits(t.Context(), "disk", limits)
		if got := w.device("disk").front.Limits(); err != nil || view.Limits != limits || got.IOPS != limits.IOPS || got.BytesPerSecond != limits.BytesPerSecond {
			t.Errorf("%+v: %+v, in force %+v, %v", limits, view.Limits, got, err)
		}
	}
	if _, err := w.SetLimits(t.Context(), "disk", Limits{IOPS: -1}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a negative one: %v", err)
	}
	if _, err := w.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.SetLimits(t.Context(), "disk", Limits{}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("of one that is not served: %v", err)
	}
}
