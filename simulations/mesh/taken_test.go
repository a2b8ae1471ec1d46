package mesh

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes/terms"
)

// TestTakenVolumesAreServedNoMore: the names of volumes are freed by force while their
// node is away, killed or cut off. It is back, stops serving them, says why, also after
// another start, and has their data still.
func TestTakenVolumesAreServedNoMore(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := start(t, l, store.URL, "a", "a")
	other, back := nodes[0], nodes[1]
	device := map[string]string{}
	for _, name := range []string{"killed", "cut", "kept"} {
		device[name] = run(t, back, "volume", "create", name, "--size", "1MiB", "--transport", "nbd")
	}
	free := func(name string) {
		t.Helper()
		until(t, "the name is freed", func(ctx context.Context) bool {
			_, err := other.Run(ctx, "volume", "rm", name, "--force")
			return err == nil
		})
	}
	isTaken := func(name string) {
		t.Helper()
		until(t, name+" is served no more", func(context.Context) bool {
			v := volume(t, back, name)
			return v.State == terms.StateFailed && strings.Contains(v.Detail, "taken away")
		})
		if err := readRange(t.Context(), device[name], 0, 4096); err == nil {
			t.Errorf("%s is read", name)
		}
	}
	if err := back.Kill(); err != nil {
		t.Fatal(err)
	}
	free("killed")
	restart(t, back)
	isTaken("killed")
	if err := back.Host.Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	free("cut")
	run(t, other, "volume", "create", "cut", "--size", "2MiB")
	if err := back.Host.Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	isTaken("cut")
	if err := back.Stop(); err != nil {
		t.Fatal(err)
	}
	restart(t, back)
	isTaken("killed")
	isTaken("cut")
	if err := readRange(t.Context(), device["kept"], 0, 4096); err != nil {
		t.Errorf("what is this node's still: %v", err)
	}
	folders := func() int {
		found, err := filepath.Glob(filepath.Join(back.Data, "volumes", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	if n := folders(); n != 3 {
		t.Errorf("%d folders of 3 volumes", n)
	}
	run(t, back, "volume", "attach", "cut", "--readonly")
	if err := readRange(t.Context(), device["cut"], 0, 4096); err != nil {
		t.Errorf("its data: %v", err)
	}
	run(t, back, "volume", "rm", "cut", "--purge")
	if v := get[api.Volume](t, other, "/api/volumes/cut"); folders() != 2 || v.Size != 2<<20 {
		t.Errorf("%d folders of 2 volumes, and the other node's: %+v", folders(), v)
	}
}
