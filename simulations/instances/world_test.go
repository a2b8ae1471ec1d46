package instances

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// farms starts a store, and a node of each farm that may publish to the whole mesh.
func farms(t *testing.T, names ...string) (*lab.Front, []*lab.Node) {
	t.Helper()
	dir := t.TempDir()
	l, err := lab.New(t.Context(), lab.Command(), dir)
	if err == nil {
		err = os.Chmod(filepath.Dir(dir), 0o755) // other users get through
	}
	if err != nil {
		t.Fatal(err)
	}
	l.Prepare = func(ctx context.Context, host *netns.Host) error {
		end, err := host.Settle(ctx)
		if err == nil {
			t.Cleanup(func() { _ = end() })
		}
		return err
	}
	t.Cleanup(func() {
		for _, n := range l.Nodes() {
			if t.Failed() {
				t.Logf("── %s\n%s", n.Name, n.Tail(30))
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		sweep(t, l.Dir)
	})
	l.Env = append(l.Env, "GRANGE_INSTANCE_EMULATOR=tcg") // where there is KVM it may be another's to give
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	front, err := store.Front(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*lab.Node
	for _, farm := range names {
		n, err := l.StartAs(t.Context(), "publisher", farm, front.URL)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	return front, nodes
}

// workloads are the processes of this host that instances under a folder have, by the folder of each.
func workloads(dir string) map[string][]int {
	out := map[string][]int{}
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range all {
		env, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for _, v := range bytes.Split(env, []byte{0}) {
			if of, ok := strings.CutPrefix(string(v), "GRANGE_INSTANCE_DIR="); ok && strings.HasPrefix(of, dir) {
				var pid int
				_, _ = fmt.Sscanf(path, "/proc/%d/", &pid)
				out[of] = append(out[of], pid)
			}
		}
	}
	return out
}

// sweep ends what a test has left running.
func sweep(t *testing.T, dir string) {
	for _, pids := range workloads(dir) {
		for _, pid := range pids {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	}
}

// ask asks for something about an instance, and returns that, or what the node says against it.
func ask(t *testing.T, n *lab.Node, method, path, body string) (i api.Instance, err error) {
	t.Helper()
	status, answer, err := n.Ask(t.Context(), method, "/api/instances/"+path, body)
	if err != nil {
		return i, err
	}
	if status/100 != 2 {
		return i, fmt.Errorf("%s: %s", http.StatusText(status), answer)
	}
	return i, json.Unmarshal(answer, &i)
}

// reach asks for something, and waits until the instance is what it is to be by then.
func reach(t *testing.T, n *lab.Node, method, path, body, want string) api.Instance {
	t.Helper()
	i, err := ask(t, n, method, path, body)
	if err != nil {
		t.Fatalf("%s %s on %s: %v", method, path, n.Name, err)
	}
	name, _, _ := strings.Cut(path, "/")
	for tick := time.Tick(20 * time.Millisecond); i.Operation != "" || i.Step != ""; <-tick {
		if i, err = ask(t, n, http.MethodGet, name, ""); err != nil {
			t.Fatal(err)
		}
	}
	if string(i.State) != want {
		t.Fatalf("%s %s on %s: it is %s (%s), want %s", method, path, n.Name, i.State, i.Detail, want)
	}
	return i
}

// on runs a program on the host of a node.
func on(t *testing.T, n *lab.Node, input string, args ...string) string {
	t.Helper()
	cmd := n.Host.Command(t.Context(), args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s on %s: %v: %.1000s", strings.Join(args, " "), n.Name, err, out)
	}
	return string(out)
}

// gone waits until nobody knows of an instance.
func gone(t *testing.T, n *lab.Node, name string) {
	t.Helper()
	for tick := time.Tick(20 * time.Millisecond); ; <-tick {
		i, err := ask(t, n, http.MethodGet, name, "")
		if err != nil && strings.Contains(err.Error(), "Not Found") {
			return
		}
		if err != nil || i.Detail != "" {
			t.Fatalf("%+v, %v", i, err)
		}
	}
}
