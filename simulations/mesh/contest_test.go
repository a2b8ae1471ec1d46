package mesh

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestOneImporterWins: two nodes publish different disks under one name at the
// same time. One wins, the other is told so, and the name stands for the winner's
// disk, whole; the same when both replace it.
func TestOneImporterWins(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	var nodes []*lab.Node
	for range 2 {
		n, err := l.StartAs(t.Context(), "publisher", "a", store.URL)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	wins := make([]int, len(nodes))
	disks := 0
	for round := range soak.Rounds(20) {
		name := fmt.Sprintf("disk%d", round)
		for _, replace := range []bool{false, true} {
			paths := []string{tinyDisk(t, l.Dir, disks), tinyDisk(t, l.Dir, disks+1)}
			disks += len(paths)
			store.Meddle(together(len(nodes), "records/image/"+name))
			winner := contest(t, nodes, name, paths, replace)
			store.Meddle(nil)
			wins[winner]++
			checkImage(t, nodes, name, paths[winner])
		}
	}
	t.Logf("wins: %v", wins)
}

// TestLostRepliesAreNoConflicts: the store does each conditional write, and its
// reply is lost each time. The one who wrote finds out that it was itself.
func TestLostRepliesAreNoConflicts(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	n := start(t, l, store.URL, "a")[0]
	var mu sync.Mutex
	lost := 0
	store.Meddle(func(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
		if r.Method != http.MethodPut || r.Header.Get("If-Match")+r.Header.Get("If-None-Match") == "" {
			store.ServeHTTP(w, r)
			return
		}
		store.ServeHTTP(httptest.NewRecorder(), r)
		mu.Lock()
		lost++
		mu.Unlock()
		panic(http.ErrAbortHandler) // the connection breaks instead of an answer
	})
	path := tinyDisk(t, l.Dir, 0)
	run(t, n, "image", "import", "disk", path)
	run(t, n, "image", "import", "disk", tinyDisk(t, l.Dir, 1), "--replace")
	run(t, n, "image", "import", "disk", path, "--replace")
	run(t, n, "image", "tag", "disk", "stable")
	run(t, n, "volume", "create", "v", "--from", "image:stable")
	if v := volume(t, n, "v"); v.State != "attached" {
		t.Errorf("the volume is %s: %s", v.State, v.Detail)
	}
	checkImage(t, []*lab.Node{n}, "disk", path)
	if got := get[api.Image](t, n, "/api/images/disk").Version; got != 3 {
		t.Errorf("version %d after three writes", got)
	}
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d replies were lost", lost)
	if lost < 5 {
		t.Errorf("only %d replies were lost: the test has not met the writes", lost)
	}
}

// contest imports a disk on each node at once and returns who won.
func contest(t *testing.T, nodes []*lab.Node, name string, paths []string, replace bool) (winner int) {
	t.Helper()
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		args := []string{"image", "import", name, paths[i]}
		if replace {
			args = append(args, "--replace")
		}
		wg.Go(func() { _, errs[i] = n.Run(t.Context(), args...) })
	}
	wg.Wait()
	winner = -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Fatalf("%s: both have won (replace: %v)", name, replace)
		case !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "conflict") && !strings.Contains(err.Error(), "exists"):
			t.Errorf("the loser of %s is told: %v", name, err)
		default:
			t.Logf("%s, replace %v: %v", name, replace, err)
		}
	}
	if winner < 0 {
		t.Fatalf("%s: nobody has won: %v", name, errs)
	}
	return winner
}

// together holds the writes of a key until so many have come, and lets them go at
// once; those that come later pass.
func together(count int, key string) lab.Meddler {
	var mu sync.Mutex
	all := make(chan struct{})
	return func(k string, w http.ResponseWriter, r *http.Request, store http.Handler) {
		if r.Method == http.MethodPut && strings.HasPrefix(k, key) {
			mu.Lock()
			if count--; count == 0 {
				close(all)
			}
			mu.Unlock()
			select {
			case <-all:
			case <-r.Context().Done():
				return
			}
		}
		store.ServeHTTP(w, r)
	}
}

// checkImage reads what the name stands for on all nodes and verifies it at the
// store.
func checkImage(t *testing.T, nodes []*lab.Node, name, path string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var version uint64
	for _, n := range nodes {
		out := filepath.Join(t.TempDir(), "out")
		run(t, n, "image", "export", name, out)
		if got, err := os.ReadFile(out); err != nil || string(got) != string(want) {
			t.Errorf("%s of %s is not the winner's (%v)", name, n.Name, err)
		}
		image := get[api.Image](t, n, "/api/images/"+name)
		if version != 0 && version != image.Version {
			t.Errorf("%s has version %d on %s, and %d on another node", name, image.Version, n.Name, version)
		}
		version = image.Version
	}
	run(t, nodes[0], "image", "verify", name)
}

// tinyDisk writes a disk of some chunks that no other number has.
func tinyDisk(t *testing.T, dir string, number int) string {
	t.Helper()
	path := filepath.Join(dir, fmt.Sprintf("tiny%d.raw", number))
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i>>12) ^ byte(i*(number+1000)>>8)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
