package volumes

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/node/volumes/right"
)

// TestNotAByteLeft starts a node on a disk that is full: what the record says to be its own
// is served under the epoch that is known, however often the record is looked at, and is
// confirmed when there is room.
func TestNotAByteLeft(t *testing.T) {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount a small disk, as root: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "--lazy", dir).Run() })
	home := newStore()
	w := startWorld(t, dir)
	w.cfg.Registry = home
	w.create(t, "web")
	want := bytes.Repeat([]byte{7}, 4096)
	if err := w.device("web").vol.WriteAt(t.Context(), want, 0, true); err != nil {
		t.Fatal(err)
	}
	w = w.again(t)
	w.cfg.Registry = home
	filler := filepath.Join(dir, "filler")
	_ = os.WriteFile(filler, make([]byte, 16<<20), 0o600) // which fails
	w.openAll(t.Context())
	got := make([]byte, len(want))
	check := func(confirmed bool) {
		t.Helper()
		a := w.device("web")
		if a == nil || a.vol == nil {
			t.Fatalf("it is not served: %v", a.err)
		}
		if err := a.vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("it reads other bytes: %v", err)
		}
		if view, err := w.Get("web"); err != nil || view.Confirmed != confirmed || !a.gate.IsOpen() {
			t.Errorf("the gate is open: %t; %+v, %v", a.gate.IsOpen(), view, err)
		}
	}
	check(false)
	for range 2 {
		if err := w.device("web").happen(t.Context(), right.Due{}); err != nil {
			t.Error(err)
		}
		check(false)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := w.device("web").happen(t.Context(), right.Due{}); err != nil {
		t.Error(err)
	}
	check(true)
	if err := w.device("web").vol.WriteAt(t.Context(), want, 0, true); err != nil {
		t.Error(err)
	}
}
