package mesh

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// restart starts a node again that was killed, and says how long it took.
func restart(t *testing.T, n *lab.Node) {
	t.Helper()
	began := time.Now()
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s is ready again after %s", n.Name, time.Since(began).Round(time.Millisecond))
}

// moment is a step of a change: the nth write of a key of this kind comes to the
// store, and is done there or not.
type moment struct {
	key  string
	nth  int32
	done bool
}

// reached is a Meddler that closes came at a moment and leaves the writer without
// an answer.
func (m moment) reached(came chan<- struct{}) lab.Meddler {
	var count atomic.Int32
	return func(key string, w http.ResponseWriter, r *http.Request, store http.Handler) {
		if r.Method != http.MethodPut || !strings.HasPrefix(key, m.key) || count.Add(1) != m.nth {
			store.ServeHTTP(w, r)
			return
		}
		if m.done {
			store.ServeHTTP(httptest.NewRecorder(), r)
		}
		io.Copy(io.Discard, r.Body) // whether it comes whole is the writer's matter
		close(came)
		<-r.Context().Done()
	}
}

// killDuring runs a command and kills the node at a moment of it.
func killDuring(t *testing.T, n *lab.Node, store *lab.Front, m moment, args ...string) {
	t.Helper()
	came := make(chan struct{})
	store.Meddle(m.reached(came))
	ended := make(chan error, 1)
	go func() {
		_, err := n.Run(t.Context(), args...)
		ended <- err
	}()
	select {
	case <-came:
	case err := <-ended:
		t.Fatalf("%v ended before %+v: %v", args, m, err)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Errorf("%v of a killed node succeeded", args)
	}
	store.Meddle(nil)
}

// TestKilledImport: a node is killed at each step of an import. The name stands
// for nothing until the last step, and for the whole image after it; run again,
// the import sends what is missing and no more.
func TestKilledImport(t *testing.T) {
	l := newLab(t)
	files, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "b")
	n, other := nodes[0], nodes[1]
	for i, m := range []moment{
		{"packs/", 1, false},
		{"packs/", 2, false},
		{"packs/", 2, true},
		{"index/", 1, false},
		{"records/image/", 1, false},
		{"records/image/", 1, true},
	} {
		path, sum := seededDisk(t, l.Dir, imageSize()*5/4, byte(i))
		name := filepath.Base(path)
		before := packBytes(t, files)
		killDuring(t, n, store, m, "image", "import", name, path)
		whole := strings.HasPrefix(m.key, "records/") && m.done
		if _, err := other.Run(t.Context(), "image", "show", name); (err == nil) != whole {
			t.Errorf("killed at %+v: the name stands for an image: %v", m, err == nil)
		}
		restart(t, n)
		kept, sent := packBytes(t, files)-before, store.Taken("packs/")
		args := []string{"image", "import", name, path}
		if whole {
			args = append(args, "--replace")
		}
		run(t, n, args...)
		sent = store.Taken("packs/") - sent
		stored := int64(get[api.Image](t, n, "/api/images/"+name).Stored)
		t.Logf("killed at %+v: of %d bytes %d were there, %d were sent again", m, stored, kept, sent)
		if sent > stored-kept+stored/resendShare {
			t.Errorf("killed at %+v: %d bytes were sent again, %d of %d were there", m, sent, kept, stored)
		}
		run(t, n, "image", "verify", name)
		readAll(t, []*lab.Node{other}, "v"+name, name, sum)
	}
}

// resendShare of what is stored may be sent beside the chunks that are missing:
// the map, where its chunks lie, and the directory of the pack that holds both.
const resendShare = 300

// packBytes is the size of all packs at the store.
func packBytes(t *testing.T, store *lab.Store) (total int64) {
	t.Helper()
	paths, err := store.Files("packs/")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	return total
}

// TestKilledImportLeavesNoFiles: a directory is made into a file system in the
// node's folder; that is cleared away at the next start.
func TestKilledImportLeavesNoFiles(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	n := start(t, l, store.URL, "a")[0]
	tree := filepath.Join(l.Dir, "tree")
	data := make([]byte, 4<<20)
	rand.Read(data)
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "data"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	killDuring(t, n, store, moment{"packs/", 1, false}, "image", "import", "tree", tree)
	if left := leftovers(t, n); len(left) == 0 {
		t.Fatal("the import had no temporary file: the test has missed it")
	}
	restart(t, n)
	if left := leftovers(t, n); len(left) > 0 {
		t.Errorf("temporary files are left after the restart: %v", left)
	}
}

func leftovers(t *testing.T, n *lab.Node) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(n.Data, "tmp", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// TestKilledPull: a node is killed again and again while it pulls an image, from
// another farm and then from the store. Each time it has kept what it had; of what
// it had fetched nothing is fetched twice but what was in flight.
func TestKilledPull(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "b")
	from := nodes[0]
	path, sum := disk(t, l.Dir, 2*imageSize())
	run(t, from, "image", "import", "disk", path)
	image := get[api.Image](t, from, "/api/images/disk")

	kills := killPulls(t, nodes[1], image.Chunks)
	readAll(t, nodes[1:2], "v", "disk", sum)
	served, raw := metric(t, from, "grange_fetch_served_bytes_total"), float64(image.Chunks*content.ChunkSizeDefault)
	t.Logf("from a member, %d kills: %.1f MiB were sent for %.1f MiB", kills, served/(1<<20), raw/(1<<20))
	if twice := served - raw; twice > float64(kills*inFlightMax) {
		t.Errorf("%.0f bytes were sent twice for %d kills", twice, kills)
	}
	if got := store.Sent("packs/"); float64(got) > served/100 { // each start looks around for members anew
		t.Errorf("the store sent %d bytes of packs that the other farm holds", got)
	}

	if err := nodes[1].Stop(); err != nil {
		t.Fatal(err)
	}
	run(t, from, "cache", "evict", "1GiB")
	before := store.Sent("packs/")
	kills = killPulls(t, from, image.Chunks)
	readAll(t, nodes[:1], "v", "disk", sum)
	sent := store.Sent("packs/") - before
	t.Logf("from the store, %d kills: %.1f MiB were sent for %.1f MiB", kills, float64(sent)/(1<<20), float64(image.Stored)/(1<<20))
	if twice := sent - int64(image.Stored); twice > int64(kills*inFlightMax) {
		t.Errorf("%d bytes were sent twice for %d kills", twice, kills)
	}
}

// killPulls kills a node in equal parts of its pull of an image, and lets it end
// the pull then. It returns how often.
func killPulls(t *testing.T, n *lab.Node, chunks uint64) (kills int) {
	t.Helper()
	kills = soak.Rounds(20)
	for round := range kills {
		goal := float64(chunks) * float64(round+1) / float64(kills+1)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			n.Run(t.Context(), "image", "warm", "disk") // it is killed
		}()
		until(t, "the pull has come so far", func(ctx context.Context) bool {
			have, err := n.Metric(ctx, "grange_cache_chunks")
			return err == nil && have >= goal
		})
		had := metric(t, n, "grange_cache_chunks")
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		<-ended
		restart(t, n)
		if has := metric(t, n, "grange_cache_chunks"); has < had {
			t.Errorf("of %.0f chunks the restart has found %.0f", had, has)
		}
	}
	run(t, n, "image", "warm", "disk")
	if bad := metric(t, n, "grange_cache_corrupt_chunks_total"); bad > 0 {
		t.Errorf("%.0f chunks in the cache were bad", bad)
	}
	return kills
}

// inFlightMax is what a pull may have under way when it is killed, in bytes.
const inFlightMax = 8 << 20

// TestKilledEviction: the cache is smaller than the disk that is read again and
// again, so it evicts all the time, and its node is killed meanwhile. What it has
// kept is good, its volume has what was written, and the store is not needed.
func TestKilledEviction(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	from := start(t, l, store.URL, "a")[0]
	n, err := l.Start(t.Context(), "a", store.URL, "--quota", fmt.Sprint(quotaLeast))
	if err != nil {
		t.Fatal(err)
	}
	path, sum := disk(t, l.Dir, quotaLeast*3/2)
	run(t, from, "image", "import", "disk", path)
	store.Meddle(func(key string, w http.ResponseWriter, r *http.Request, s http.Handler) {
		if strings.HasPrefix(key, "packs/") { // what the farm holds comes from there
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		s.ServeHTTP(w, r)
	})
	device := run(t, n, "volume", "create", "written", "--from", "image:disk")
	pattern := filepath.Join(l.Dir, "pattern")
	for round := range soak.Rounds(20) {
		fill(t, pattern, byte(round+1))
		write(t, pattern, device)
		gone := metric(t, n, "grange_cache_removed_chunks_total")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			exec.CommandContext(t.Context(), "nbdcopy", device, "null:").Run() // it loses its node
		}()
		until(t, "the cache evicts", func(ctx context.Context) bool {
			now, err := n.Metric(ctx, "grange_cache_removed_chunks_total")
			return err == nil && now > gone+100
		})
		had := metric(t, n, "grange_cache_chunks")
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		<-ended
		restart(t, n)
		has := metric(t, n, "grange_cache_chunks")
		t.Logf("the cache had %.0f chunks, and has %.0f", had, has)
		if has < had*9/10 {
			t.Errorf("of %.0f chunks the restart has found %.0f", had, has)
		}
		back := filepath.Join(l.Dir, "back")
		if out, err := exec.Command("qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", fmt.Sprintf("count=%d", patternSize>>20), "if="+device, "of="+back).CombinedOutput(); err != nil {
			t.Fatalf("read back: %v: %s", err, out)
		}
		compareHead(t, pattern, back)
	}
	readAll(t, []*lab.Node{n}, "v", "disk", sum)
	if bad := metric(t, n, "grange_cache_corrupt_chunks_total"); bad > 0 {
		t.Errorf("%.0f chunks in the cache were bad", bad)
	}
}

// quotaLeast is the smallest that a cache may have.
const quotaLeast = 256 << 20

// TestKilledVolumeChange: a node is killed while it makes or removes a volume.
// After the restart the change is done or undone, and made again it succeeds.
func TestKilledVolumeChange(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	n := start(t, l, store.URL, "a")[0]
	path, sum := disk(t, l.Dir, imageSize()/4)
	run(t, n, "image", "import", "disk", path)
	for _, m := range []moment{{"records/volume/", 1, false}, {"records/volume/", 1, true}} {
		killDuring(t, n, store, m, "volume", "create", "v-a1", "--from", "image:disk")
		restart(t, n)
		readAll(t, []*lab.Node{n}, "v", "disk", sum) // which makes it, unless the start has
		await(t, "its name is the mesh's", func() bool {
			made := get[[]api.Volume](t, n, "/api/volumes")
			return len(made) == 1 && made[0].Name == "v-a1" && made[0].State != terms.StateUncommitted
		})
		killDuring(t, n, store, m, "volume", "rm", "v-a1")
		restart(t, n)
		run(t, n, "volume", "rm", "v-a1")
		if left := get[[]api.Volume](t, n, "/api/volumes"); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	}
}
