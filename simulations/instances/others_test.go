package instances

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
)

// TestVolumesOfOthers: a volume that is no machine's becomes none's, wherever it was attached last, and none that fails, or that
// is obliterated, takes it along.
func TestVolumesOfOthers(t *testing.T) {
	_, nodes := farms(t, "a", "a")
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].Run(t.Context(), "image", "import", "disk", image); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"volume", "create", "db", "--from", "image:disk"}, {"volume", "detach", "db"}} {
		if _, err := nodes[0].Run(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		said, err := n.Run(t.Context(), "instance", "provision", "db", "--from", "image:disk", "--ready", "log:never", "--ready-timeout", "1s")
		if err == nil || !strings.Contains(err.Error(), "another volume has the name") {
			t.Errorf("on %s: %s, %v", n.Name, said, err)
		}
		if _, err := n.Run(t.Context(), "instance", "obliterate", "db"); err != nil {
			t.Error(err)
		}
		var v api.Volume
		if err := nodes[0].Get(t.Context(), "/api/volumes/db", &v); err != nil || v.State != "released" {
			t.Fatalf("the volume of another: %+v, %v", v, err)
		}
	}
}
