package instance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/simulations/soak"
)

// still is a workload that does nothing.
func still() terms.Request {
	return terms.Request{Spec: terms.Spec{Command: []string{"sleep", "100000"}, NoPort: true, Ready: "none"}}
}

// TestDiskFull: what there is no room for says so, and leaves nothing; with room it is there.
func TestDiskFull(t *testing.T) {
	o := newOrigin()
	a := newWorld(t, o, t.TempDir(), 1)
	v := a.must("web", state.Provision, state.Provisioned, still())
	for k := range 8 { // of zeros there would be nothing but holes
		if err := os.WriteFile(filepath.Join(v.Dir, fmt.Sprint("part", k)), []byte(strings.Repeat(fmt.Sprint(k), 1<<20)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.must("web", state.Deprovision, state.Unprovisioned)
	small := t.TempDir()
	if err := unix.Mount("none", small, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	b := newWorld(t, o, filepath.Join(small, "instances"), 2)
	if v, err := b.do("web", state.Provision); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("%s, %v", v.State, err)
	}
	if r := o.record(t, "web"); r.State != catalog.Released || len(b.folders()) > 0 {
		t.Errorf("%+v, and %q is left", r, b.folders())
	}
	if err := unix.Mount("none", small, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	v = b.must("web", state.Provision, state.Provisioned)
	if info, err := os.Stat(filepath.Join(v.Dir, "part7")); err != nil || info.Size() != 1<<20 {
		t.Errorf("%+v, %v", info, err)
	}
	b.must("web", state.Obliterate, state.Unprovisioned)
}

// TestManyFiles: they are put away, and come back.
func TestManyFiles(t *testing.T) {
	o := newOrigin()
	a, b := newWorld(t, o, t.TempDir(), 1), newWorld(t, o, t.TempDir(), 2)
	v := a.must("web", state.Provision, state.Provisioned, still())
	many := soak.Of(3000, 100_000)
	for k := range many {
		dir := filepath.Join(v.Dir, fmt.Sprint("d", k%100))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", k)), fmt.Append(nil, "file ", k), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.must("web", state.Deprovision, state.Unprovisioned)
	v = b.must("web", state.Provision, state.Provisioned)
	for k := range many {
		if got, err := os.ReadFile(filepath.Join(v.Dir, fmt.Sprint("d", k%100), fmt.Sprint("f", k))); err != nil || string(got) != fmt.Sprint("file ", k) {
			t.Fatalf("file %d: %q, %v", k, got, err)
		}
	}
	b.must("web", state.Obliterate, state.Unprovisioned)
}
