package bench

import (
	"fmt"
	"net/http"
	"os/exec"
	"testing"

	"github.com/grangemesh/grange/simulations/lab"
)

const (
	// instantTimes is how often each is done, and instantMs what the median of it may take.
	instantTimes, instantMs = 31, 50
	// writtenSize is what is written to the volume before each snapshot.
	writtenSize = 1 << 20
)

// BenchmarkInstant measures what a client waits for over the API while the origin is a
// directory: a snapshot of a volume that was written to just now, a fork of that, and the
// fork's detach and attach.
func BenchmarkInstant(b *testing.B) {
	dir := b.TempDir()
	n := founder(b, newLab(b, dir), "")
	run(b, n, "image", "import", "disk", random(b, dir, 64<<20))
	device := run(b, n, "volume", "create", "v", "--from", "image:disk", "--transport", "nbd")
	some := random(b, b.TempDir(), writtenSize)
	for b.Loop() {
		took := map[string][]float64{}
		for i := range instantTimes {
			if out, err := exec.Command("nbdcopy", "--flush", "--", some, device).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			fork := fmt.Sprintf("/api/volumes/fork-%d-%d", b.N, i)
			for _, x := range []struct{ what, method, path, body string }{
				{"snapshot", http.MethodPost, "/api/volumes/v/snapshots", "{}"},
				{"fork", http.MethodPut, fork, `{"from": "volume:v", "transport": "nbd"}`},
				{"detach", http.MethodPost, fork + "/detach", ""},
				{"attach", http.MethodPut, fork, `{"transport": "nbd"}`},
			} {
				took[x.what] = append(took[x.what], msOf(b, func() error { return asks(b, n, x.method, x.path, x.body) }))
			}
		}
		b.Logf("detach: %.1f ms, with all of it in the bucket", median(took["detach"]))
		for _, what := range []string{"snapshot", "fork", "attach"} {
			atMost(b, what+", p50", "ms", median(took[what]), instantMs)
		}
	}
}

// asks asks a node's API for what must succeed.
func asks(b *testing.B, n *lab.Node, method, path, body string) error {
	status, answer, err := n.Ask(b.Context(), method, path, body)
	if err == nil && status >= 300 {
		err = fmt.Errorf("%s %s: %d %s", method, path, status, answer)
	}
	return err
}
