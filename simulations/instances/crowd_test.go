package instances

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestManyHydrateAtOnce: nodes of three farms that begin instances with one tree at once have it from the store about once.
func TestManyHydrateAtOnce(t *testing.T) {
	names := make([]string, soak.Of(6, 25)) // of which one stops
	for k := range names {
		names[k] = string(rune('a' + k%3))
	}
	front, nodes := farms(t, names...)
	src := filepath.Join(t.TempDir(), "src")
	random := rand.NewChaCha8([32]byte{1})
	for k := range 200 {
		data := make([]byte, 1000+k*k*20)
		_, _ = random.Read(data)
		path := filepath.Join(src, fmt.Sprintf("d%02d", k%20), fmt.Sprint("f", k))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nodes[0].Run(t.Context(), "tree", "import", "site", src); err != nil {
		t.Fatal(err)
	}
	var tree api.Image
	if err := nodes[0].Get(t.Context(), "/api/trees/site", &tree); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Stop(); err != nil { // who has all of it
		t.Fatal(err)
	}
	before := front.Sent("packs/")
	var all sync.WaitGroup
	for k, n := range nodes[1:] {
		all.Go(func() {
			i := reach(t, n, http.MethodPut, fmt.Sprint("web", k), `{"from":"tree:site","no_port":true,"ready":"none","command":["sleep","1000000"]}`, "provisioned")
			if _, err := os.Stat(filepath.Join(i.Dir, "d19", "f199")); err != nil {
				t.Errorf("on %s: %v", n.Name, err)
			}
		})
	}
	all.Wait()
	sent := front.Sent("packs/") - before
	t.Logf("%d nodes of 3 farms have a tree of %d stored bytes, of which the store sent %d", len(nodes)-1, tree.Stored, sent)
	if sent < int64(tree.Stored) || float64(sent) > 1.1*float64(tree.Stored) {
		t.Errorf("the store sent %d bytes, of %d that are stored", sent, tree.Stored)
	}
}
