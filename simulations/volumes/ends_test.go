package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// start starts one more node, of a farm.
func (f *farm) start(of string) *lab.Node {
	f.Helper()
	n, err := f.nodes[0].Lab().Start(f.Context(), of, f.front.URL)
	if err != nil {
		f.Fatal(err)
	}
	return n
}

// TestBucketSurvivesTheFarm: under origin all nodes of a farm are killed under load, and
// their folders removed. A new one has each flush that was acknowledged, and after it is
// gone as well so has the next.
func TestBucketSurvivesTheFarm(t *testing.T) {
	f := newFarm(t, 1) // another farm, which lets members in
	w := newWriter(4<<20, 5)
	nodes := []*lab.Node{f.start("b"), f.start("b")}
	device := f.create(nodes[0], "web", "--size", "4MiB", "--durability", "origin")
	for round := range soak.Of(2, 20) {
		f.writeUntil(w, device, 20, func() (err error) {
			for _, n := range nodes {
				err = errors.Join(err, n.Kill(), os.RemoveAll(n.Data))
			}
			return err
		})
		nodes = []*lab.Node{f.start("b")}
		device = f.run(nodes[0], "volume", "attach", "web", "--takeover", "--transport", "nbd")
		disk := f.contents(device)
		if err := w.lost(disk); err != nil {
			t.Fatalf("farm %d, after %d flushes: %v", round+1, w.flush, err)
		}
		w.seen(disk)
	}
	t.Logf("%d flushes were acknowledged, none was lost", w.flush)
}

// TestFullDiskIsEmptied: the disk of a node runs full while clients write to its volumes.
// They are refused, read all that was acknowledged, and go on over the same connections
// when there is space again, without a restart; as often as that happens.
func TestFullDiskIsEmptied(t *testing.T) {
	f := newFarm(t, 1)
	data := filepath.Join(f.nodes[0].Lab().Dir, "a2")
	err := os.Mkdir(data, 0o755)
	if err == nil {
		err = syscall.Mount("tmpfs", data, "tmpfs", 0, fmt.Sprintf("size=%d", 64<<20))
	}
	if err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	f.nodes = append(f.nodes, f.start("a"))
	t.Cleanup(func() { // while a node is there, this one is not stopped yet
		if err := errors.Join(f.nodes[1].Stop(), syscall.Unmount(data, 0)); err != nil {
			t.Error(err)
		}
	})
	n := f.nodes[1]
	writers, clients := map[string]*writer{}, map[string]*client{}
	for i, name := range []string{"web", "db"} {
		writers[name], clients[name] = newWriter(4<<20, uint64(i)), f.dial(f.create(n, name, "--size", "4MiB"))
		f.steps(writers[name], clients[name], 5)
	}
	filler := filepath.Join(data, "filler")
	for round := range soak.Rounds(20) {
		fillUp(t, filler)
		for name, w := range writers {
			var err error
			for err == nil {
				err = w.step(clients[name])
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%s on a full disk: %v", name, err)
			}
			if v := f.volume(n, name); v.State != terms.StateFull {
				t.Errorf("%s is %s on a full disk: %s", name, v.State, v.Detail)
			}
			if err := w.lost(f.contents(f.volume(n, name).Device)); err != nil {
				t.Errorf("round %d: %s, while the disk is full: %v", round, name, err)
			}
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		for name, w := range writers {
			until(t, name+" is written to again", func(context.Context) bool { return w.step(clients[name]) == nil })
			f.steps(w, clients[name], 5)
			if v := f.volume(n, name); v.State != terms.StateAttached {
				t.Errorf("%s is %s with space again: %s", name, v.State, v.Detail)
			}
		}
	}
	if err := errors.Join(n.Kill(), n.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	for name, w := range writers {
		if err := w.lost(f.contents(f.volume(n, name).Device)); err != nil {
			t.Errorf("%s, after a restart: %v", name, err)
		}
	}
}

// fillUp writes a file until its disk is full.
func fillUp(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for p := make([]byte, block); err == nil; {
		_, err = file.Write(p)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}
