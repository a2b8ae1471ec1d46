// Package volumes tests what is promised of a volume's state on its way between nodes:
// real processes, a real S3 server, and clients that keep what was acknowledged to them.
package volumes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// TestMain builds the command under test, once for all tests.
func TestMain(m *testing.M) {
	if os.Getenv(guestVariable) == "" {
		os.Exit(runTests(m))
	}
	if err := insideMachine(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func runTests(m *testing.M) int {
	dir := filepath.Dir(command())
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", command(), "github.com/grangemesh/grange/cmd/grange")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the command: %v: %s\n", err, out)
		return 1
	}
	return m.Run()
}

// command is the path of the command under test.
func command() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("grange-volumes-test-%d", os.Getpid()), "grange")
}

// farm is some nodes of one farm, and the store that they have as their origin.
type farm struct {
	*testing.T
	store *lab.Store
	front *lab.Front
	nodes []*lab.Node
}

// newFarm starts a farm; the first node founds the mesh. The test runs beside others: a
// farm mostly waits.
func newFarm(t *testing.T, nodes int) *farm {
	t.Helper()
	t.Parallel()
	return quietFarm(t, nodes)
}

// quietFarm is newFarm for a test that nothing runs beside: where a standstill of the machine
// would be what it sees.
func quietFarm(t *testing.T, nodes int) *farm {
	t.Helper()
	l, err := lab.New(t.Context(), command(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &farm{T: t}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range l.Nodes() {
				t.Logf("── %s\n%s", n.Name, n.Tail(15))
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	f.store, err = l.StartStore(t.Context())
	if err == nil {
		f.front, err = f.store.Front(t.Context())
	}
	for range nodes {
		var n *lab.Node
		if err == nil {
			n, err = l.Start(t.Context(), "a", f.front.URL)
		}
		f.nodes = append(f.nodes, n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *farm) run(n *lab.Node, args ...string) string {
	f.Helper()
	out, err := n.Run(f.Context(), args...)
	if err != nil {
		f.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// create makes a volume over NBD and returns its device.
func (f *farm) create(n *lab.Node, name string, args ...string) string {
	f.Helper()
	return f.run(n, append([]string{"volume", "create", name, "--transport", "nbd"}, args...)...)
}

func (f *farm) dial(device string) *client {
	f.Helper()
	c, err := dial(device)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.conn.Close() })
	return c
}

func (f *farm) steps(w *writer, c *client, n int) {
	f.Helper()
	for range n {
		if err := w.step(c); err != nil {
			f.Fatal(err)
		}
	}
}

// writeUntil writes through a connection of its own until so many more flushes are
// acknowledged, does what is to be done meanwhile, and waits for the end of the
// connection.
func (f *farm) writeUntil(w *writer, device string, flushes int, do func() error) {
	f.Helper()
	ended := f.write(w, device, flushes)
	if err := do(); err != nil {
		f.Fatal(err)
	}
	if err := <-ended; err == nil {
		f.Fatal("the connection goes on")
	}
}

// write has a writer write until its connection fails, and returns when so many more
// flushes are acknowledged.
func (f *farm) write(w *writer, device string, flushes int) (ended <-chan error) {
	f.Helper()
	c := f.dial(device)
	enough, end, want := make(chan struct{}), make(chan error, 1), w.flush+flushes
	go func() {
		end <- w.run(c, func(flushes int) {
			if flushes == want {
				close(enough)
			}
		})
	}()
	select {
	case <-enough:
	case err := <-end:
		f.Fatalf("after %d flushes: %v", w.flush, err)
	}
	return end
}

// contents reads all of a device.
func (f *farm) contents(device string) []byte {
	f.Helper()
	c := f.dial(device)
	p := make([]byte, c.size)
	const piece = 1 << 20
	for off := 0; off < len(p); off += piece {
		if err := c.read(p[off:min(off+piece, len(p))], int64(off)); err != nil {
			f.Fatal(err)
		}
	}
	if err := c.close(); err != nil {
		f.Fatal(err)
	}
	return p
}

// exported reads all of what a reference names, through a file.
func (f *farm) exported(n *lab.Node, ref string) []byte {
	f.Helper()
	file := filepath.Join(f.TempDir(), "disk")
	f.run(n, "volume", "export", ref, file)
	b, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func get[T any](t *testing.T, n *lab.Node, path string) (v T) {
	t.Helper()
	if err := n.Get(t.Context(), path, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// problem asks for what must be refused, and returns why it was.
func (f *farm) problem(n *lab.Node, method, path, body string) (p api.Problem) {
	f.Helper()
	status, answer, err := n.Ask(f.Context(), method, path, body)
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(answer)).Decode(&p)
	}
	if err != nil || status < 400 || p.Status != status {
		f.Fatalf("%s %s: %d %s, %v", method, path, status, answer, err)
	}
	return p
}

// until waits for something that becomes true by itself.
func until(t *testing.T, what string, is func(ctx context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !is(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}
