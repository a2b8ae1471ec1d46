package instances

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTargetInS3: an instance goes between two nodes by a target of its own, of which the mesh's origin has nothing; what is
// sent and read is what has changed, and no other member is asked for it.
func TestTargetInS3(t *testing.T) {
	front, nodes := farms(t, "a", "a")
	origin, query, _ := strings.Cut(front.URL, "?")
	spec := fmt.Sprintf(`{"no_port":true,"ready":"none","command":["sleep","1000000"],"target":"%s/targets?%s"}`, origin[:strings.LastIndexByte(origin, '/')], query) // beside the origin
	i := reach(t, nodes[0], http.MethodPut, "db", spec, "provisioned")
	large := make([]byte, 24<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(large)
	for k := range 100 {
		if err := os.WriteFile(filepath.Join(i.Dir, fmt.Sprint("small", k)), fmt.Append(nil, "file ", k), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for round, n := range []int{1, 0} {
		if err := os.WriteFile(filepath.Join(i.Dir, "large"), large, 0o600); err != nil {
			t.Fatal(err)
		}
		taken, origin := front.Taken("/targets/"), front.Taken("packs/")
		reach(t, nodes[1-n], http.MethodPost, "db/deprovision", "", "unprovisioned")
		taken, origin = front.Taken("/targets/")-taken, front.Taken("packs/")-origin
		sent := front.Sent("/targets/")
		i = reach(t, nodes[n], http.MethodPut, "db", "", "provisioned")
		sent = front.Sent("/targets/") - sent
		t.Logf("round %d: the target took %d bytes, and sent %d", round, taken, sent)
		if got, err := os.ReadFile(filepath.Join(i.Dir, "large")); err != nil || !bytes.Equal(got, large) {
			t.Errorf("round %d: the large file is another: %v", round, err)
		}
		if got, err := os.ReadFile(filepath.Join(i.Dir, "small99")); err != nil || string(got) != "file 99" {
			t.Errorf("round %d: %q, %v", round, got, err)
		}
		if origin > 0 || sent > int64(len(large))*11/10 || round > 0 && taken > 1<<20 {
			t.Errorf("round %d: the origin took %d", round, origin)
		}
		_, _ = random.Read(large[1<<20 : 1<<20+500])
	}
	if _, err := ask(t, nodes[0], http.MethodPost, "db/obliterate", ""); err != nil {
		t.Fatal(err)
	}
	gone(t, nodes[0], "db")
	err := filepath.WalkDir(filepath.Join(filepath.Dir(nodes[0].Data), "store"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(path, "/targets/") {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
