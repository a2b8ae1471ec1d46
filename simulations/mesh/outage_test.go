package mesh

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// until asks again and again until it is so, or fails after a while.
func until(t *testing.T, what string, ask func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ask(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func volume(t *testing.T, n *lab.Node, name string) (v api.Volume) {
	t.Helper()
	if err := n.Get(t.Context(), "/api/volumes/"+name, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestFarmWorksWithoutItsStore: what a farm holds can be resolved, made into
// volumes and read while the store is away; what nobody holds fails and says who
// was asked; the volumes are registered when the store is back.
func TestFarmWorksWithoutItsStore(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := l.Start(t.Context(), "a", store.URL); err != nil {
			t.Fatal(err)
		}
	}
	a, b := l.Nodes()[0], l.Nodes()[1]
	path, sum := disk(t, l.Dir, 32<<20)
	run(t, a, "image", "import", "disk", path)
	run(t, b, "resolve", "disk")
	if err := store.Stop(); err != nil {
		t.Fatal(err)
	}
	until(t, "node b notices that the store is away", func(ctx context.Context) bool {
		s, err := b.Status(ctx)
		return err == nil && s.Origin.State == "unreachable"
	})
	if got, err := read(t.Context(), b, "away", "disk"); err != nil || got != sum {
		t.Fatalf("read without the store: %v, or other bytes", err)
	}
	if v := volume(t, b, "away"); v.State != "uncommitted" {
		t.Errorf("state %q (%s), want uncommitted", v.State, v.Detail)
	}
	var r api.Resolved
	until(t, "the name is unconfirmed", func(ctx context.Context) bool {
		return b.Get(ctx, "/api/resolve/disk", &r) == nil && !r.Confirmed && r.Age > 0
	})
	if _, err := b.Run(t.Context(), "volume", "create", "none", "--from", "image:never"); err == nil || !strings.Contains(err.Error(), "origin") {
		t.Errorf("an unknown image: %v; want an error that names the origin", err)
	}
	if err := store.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the volume is registered", func(context.Context) bool { return volume(t, b, "away").State == "attached" })
}

// TestSilentStore: the store does not answer any more, and nobody is told. What
// the farm holds is made into a volume and read in bounded time, and the volume is
// registered when the store is back.
func TestSilentStore(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := start(t, l, store.URL, "a", "a")
	path, sum := disk(t, l.Dir, imageSize())
	run(t, nodes[0], "image", "import", "disk", path)
	if err := store.Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	readAll(t, nodes[1:], "v", "disk", sum)
	t.Logf("created and read in %s", time.Since(began).Round(time.Millisecond))
	until(t, "the node knows that the store is away", func(ctx context.Context) bool {
		s, err := nodes[1].Status(ctx)
		return err == nil && s.Origin.State == "unreachable"
	})
	began = time.Now()
	readAll(t, nodes[1:], "w", "disk", sum)
	t.Logf("and once more in %s", time.Since(began).Round(time.Millisecond))
	if err := store.Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the volumes are registered", func(context.Context) bool {
		return volume(t, nodes[1], "v-a2").State == "attached" && volume(t, nodes[1], "w-a2").State == "attached"
	})
}

// TestFarmRestartsWithoutItsStore: the power of a farm fails while its store is
// away. All nodes are killed and come back: names, volumes with what was written,
// and images are there, and a new volume can be made.
func TestFarmRestartsWithoutItsStore(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := start(t, l, store.URL, "a", "a", "a")
	path, sum := disk(t, l.Dir, imageSize())
	run(t, nodes[0], "image", "import", "disk", path)
	pattern := filepath.Join(l.Dir, "pattern")
	fill(t, pattern, 1)
	devices := map[*lab.Node]string{}
	for _, n := range nodes {
		devices[n] = run(t, n, "volume", "create", "v-"+n.Name, "--from", "image:disk")
		write(t, pattern, devices[n])
	}
	if err := store.Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := n.Restart(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, n := range nodes {
		checkDevice(t, devices[n], path, pattern)
		until(t, "the name is resolved as unconfirmed", func(context.Context) bool { // some seconds after it was last seen
			r := get[api.Resolved](t, n, "/api/resolve/disk")
			return !r.Confirmed && r.Size == imageSize()
		})
	}
	readAll(t, nodes, "new", "disk", sum)
	if err := store.Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the new volumes are registered", func(context.Context) bool {
		for _, n := range nodes {
			if volume(t, n, "new-"+n.Name).State != "attached" {
				return false
			}
		}
		return true
	})
}

// TestReadOnlyStore: a node that may only read the store works: it reads from it,
// others write its records for it, and an import is refused.
func TestReadOnlyStore(t *testing.T) {
	l := newLab(t)
	store, writers := front(t, l)
	readers, err := store.Front(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	readers.Meddle(refuseWrites)
	from := start(t, l, writers.URL, "a")[0]
	path, sum := disk(t, l.Dir, imageSize()/2)
	run(t, from, "image", "import", "disk", path)
	n, err := l.StartAs(t.Context(), "publisher", "b", readers.URL)
	if err != nil {
		t.Fatal(err)
	}
	if o := get[api.Status](t, n, "/api/status").Origin; o.State != "read-only" {
		t.Errorf("the store is %q: %s", o.State, o.Detail)
	}
	readAll(t, []*lab.Node{n}, "v", "disk", sum)
	refuse(t, l, n.Host, []refusal{
		{what: "import", args: []string{"image", "import", "mine", path, "--data", n.Data}, says: []string{"mine", "read-only"}},
	})
	until(t, "another member has written the volume's record", func(context.Context) bool { return volume(t, n, "v-"+n.Name).State == "attached" })
}

// TestKilledNodeComesBack: a node is killed while a guest writes with flushes;
// what was flushed is there when it is back, under the same name.
func TestKilledNodeComesBack(t *testing.T) {
	l := newLab(t)
	n, err := l.Start(t.Context(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	path, _ := disk(t, l.Dir, 32<<20)
	run(t, n, "image", "import", "disk", path)
	device := run(t, n, "volume", "create", "v", "--from", "image:disk")
	for round := range soak.Rounds(20) {
		pattern := filepath.Join(l.Dir, "pattern")
		fill(t, pattern, byte(round+1))
		write(t, pattern, device)
		ctx, cancel := context.WithCancel(t.Context())
		load := exec.CommandContext(ctx, "fio", "--name=load", "--ioengine=nbd", "--uri="+device, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--offset=16m", "--size=16m", "--time_based", "--runtime=60")
		if err := load.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "fio writes", func(context.Context) bool { return volume(t, n, "v").DirtyBytes > 9<<20 })
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		cancel()
		load.Wait() // its device is gone
		start := time.Now()
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("ready again after %s", time.Since(start))
		if got := volume(t, n, "v"); got.Device != device {
			t.Fatalf("device %q (%s %s), was %q", got.Device, got.State, got.Detail, device)
		}
		back := filepath.Join(l.Dir, "back")
		os.Remove(back)
		if out, err := exec.Command("nbdcopy", device, back).CombinedOutput(); err != nil {
			t.Fatalf("read back: %v: %s", err, out)
		}
		compareHead(t, pattern, back)
	}
}

// patternSize of the part of the disk that is written and flushed before a kill;
// the load writes behind it.
const patternSize = 8 << 20

func fill(t *testing.T, path string, b byte) {
	t.Helper()
	data := make([]byte, patternSize)
	for i := range data {
		data[i] = b ^ byte(i>>9)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func compareHead(t *testing.T, want, got string) {
	t.Helper()
	w, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	g, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	if len(g) < len(w) || string(g[:len(w)]) != string(w) {
		t.Fatal("what was flushed is not there")
	}
}

// TestRefusedOriginStopsNoVolumes: a node whose volumes are waited for starts with
// an origin that has become unusable, says so, and takes it when it is mended; one
// that has none attached does not start.
func TestRefusedOriginStopsNoVolumes(t *testing.T) {
	l := newLab(t)
	origin := filepath.Join(l.Dir, "images")
	if err := os.MkdirAll(origin, 0o755); err != nil {
		t.Fatal(err)
	}
	n, err := l.Start(t.Context(), "a", "file://"+origin)
	if err != nil {
		t.Fatal(err)
	}
	device := run(t, n, "volume", "create", "v", "--size", "8MiB")
	claim := filepath.Join(origin, "grange.json")
	whole, err := os.ReadFile(claim)
	if err != nil {
		t.Fatal(err)
	}
	restart := func(text []byte) error {
		t.Helper()
		if err := os.WriteFile(claim, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		return n.Restart(t.Context())
	}
	if err := restart([]byte("{")); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Status(t.Context()); err != nil || s.Origin.State != "refused" {
		t.Errorf("the origin is %q, %v", s.Origin.State, err)
	}
	if got := volume(t, n, "v"); got.Device != device {
		t.Errorf("the volume is served as %q (%s %s), was %q", got.Device, got.State, got.Detail, device)
	}
	if err := os.WriteFile(claim, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	taken := func(ctx context.Context) bool {
		s, err := n.Status(ctx)
		return err == nil && s.Origin.State == "ok"
	}
	until(t, "the origin is taken again", taken)

	// One that can't even be opened: a mount that is away.
	if err := errors.Join(n.Stop(), os.Rename(origin, origin+".away"), os.WriteFile(origin, nil, 0o600), n.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Status(t.Context()); err != nil || s.Origin.State == "ok" || s.Origin.Detail == "" {
		t.Errorf("the origin is %+v, %v", s.Origin, err)
	}
	if err := errors.Join(os.Remove(origin), os.Rename(origin+".away", origin)); err != nil {
		t.Fatal(err)
	}
	until(t, "the origin is opened", taken)
	run(t, n, "volume", "rm", "v")
	if err := restart([]byte("{")); err == nil || !strings.Contains(n.Tail(5), "grange.json") {
		t.Errorf("without volumes it starts: %v\n%s", err, n.Tail(5))
	}
}
