package mesh

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// orchard makes a folder of many small files and some large ones, and returns about what is in it, in bytes.
func orchard(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := os.MkdirAll(dir, 0o755)
	for i := 0; i < 800 && err == nil; i++ {
		size := int64(300 + i*7919%20_000)
		if i%100 == 0 {
			size = 2 << 20
		}
		data := make([]byte, size)
		for j := range data {
			data[j] = byte((j + i) * (j*j + 7*i + 1) >> 7)
		}
		path := filepath.Join(dir, fmt.Sprintf("d%02d/f%03d", i%40, i))
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, data, 0o640)
		}
		bytes += size
	}
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// alike fails unless two folders have the same files.
func alike(t *testing.T, what, dir, as string) {
	t.Helper()
	sum := func(dir string) string {
		cmd := exec.CommandContext(t.Context(), "bash", "-ec", "tar --sort=name --numeric-owner -cf - . | sha256sum")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", what, err, out)
		}
		return string(out)
	}
	if sum(dir) != sum(as) {
		out, _ := exec.CommandContext(t.Context(), "bash", "-c", `list() { (cd "$1"; find . -printf '%p %m %U:%G %s %T@ %l\n' | sort); }; diff <(list "$0") <(list "$1"); diff -r "$0" "$1"`, as, dir).CombinedOutput()
		t.Errorf("%s: the files are others\n%.2000s", what, out)
	}
}

// TestTreesTravel: a tree that one farm publishes is written out and read in another, which has it from members; a new
// version of it sends little more than what has changed.
func TestTreesTravel(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "b", "b")
	src := filepath.Join(l.Dir, "src")
	bytes := orchard(t, src)
	run(t, nodes[0], "tree", "import", "orchard", src)
	stored := int64(get[api.Image](t, nodes[0], "/api/trees/orchard").Stored)
	before := store.Sent("packs/")
	for i, n := range nodes[1:] {
		out := filepath.Join(l.Dir, fmt.Sprint("out", i))
		t.Log(run(t, n, "tree", "export", "orchard", out))
		alike(t, "written out", out, src)
	}
	if sent := store.Sent("packs/") - before; sent > stored*11/10 {
		t.Errorf("the store sent %d bytes for two nodes of another farm, of %d that are stored", sent, stored)
	}
	fromStdin(t, nodes[0], src)
	newVersion(t, nodes, src, bytes)

	run(t, nodes[0], "tree", "tag", "orchard", "stable")
	for _, list := range []struct{ path, want string }{{"/api/trees", "orchard stable"}, {"/api/images", ""}} {
		var names []string
		for _, i := range get[[]api.Image](t, nodes[2], list.path) {
			names = append(names, i.Name)
		}
		if got := strings.Join(names, " "); got != list.want {
			t.Errorf("%s: %q, want %q", list.path, got, list.want)
		}
	}
	refusesTrees(t, nodes[1])
	run(t, nodes[0], "tree", "rm", "orchard")
}

// fromStdin pipes the folder in as a tar file, which is the same tree; and what is none, of which nothing is left.
func fromStdin(t *testing.T, n *lab.Node, src string) {
	t.Helper()
	pipe := func(script string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-c", script, lab.Command(), src, n.Data).CombinedOutput()
		return string(out), err
	}
	if said, err := pipe(`tar c --format=posix --numeric-owner -C "$1" . | zstd | "$0" tree import piped - --data "$2"`); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	piped, as := get[api.Image](t, n, "/api/trees/piped"), get[api.Image](t, n, "/api/trees/orchard")
	if piped.CID != as.CID || piped.Source != "standard input" {
		t.Errorf("it is %+v, not %s", piped, as.CID)
	}
	if said, err := pipe(`echo words | "$0" tree import words - --data "$2"`); err == nil || !strings.Contains(said, "a directory or a tar file") {
		t.Errorf("%v: %s", err, said)
	}
	if left, err := filepath.Glob(filepath.Join(n.Data, "tmp", "*")); err != nil || len(left) > 0 {
		t.Errorf("%s are left, %v", left, err)
	}
	run(t, n, "tree", "rm", "piped")
}

// newVersion changes a few files, publishes and writes out that, over the old one.
func newVersion(t *testing.T, nodes []*lab.Node, src string, bytes int64) {
	t.Helper()
	changed := filepath.Join(src, "d00/f400")
	data, err := os.ReadFile(changed)
	if err == nil {
		err = os.WriteFile(changed, slices.Insert(data, 1_000_000, []byte("some words")...), 0o640)
	}
	if err == nil {
		err = os.Remove(filepath.Join(src, "d07/f007"))
	}
	if err != nil {
		t.Fatal(err)
	}
	said := run(t, nodes[0], "tree", "import", "orchard", src, "--replace")
	t.Logf("of %d bytes: %s", bytes, said)
	op := get[[]api.Operation](t, nodes[0], "/api/operations?limit=1")[0]
	if most := bytes / 10; op.Bytes["new"] > most {
		t.Errorf("%d bytes are new, at most %d are right", op.Bytes["new"], most)
	}
	out := filepath.Join(filepath.Dir(src), "out0")
	run(t, nodes[1], "tree", "export", "orchard", out, "--force")
	alike(t, "written out over the old one", out, src)
}

// refusesTrees has a node asked for what a tree is not.
func refusesTrees(t *testing.T, n *lab.Node) {
	t.Helper()
	for _, args := range [][]string{
		{"volume", "create", "v", "--from", "image:orchard"}, {"volume", "create", "v", "--from", "image:stable"}, {"image", "export", "orchard", filepath.Join(t.TempDir(), "disk")},
		{"tree", "export", "orchard", filepath.Join(filepath.Dir(t.TempDir()))}, {"image", "import", "orchard", "/dev/null"},
	} {
		if out, err := n.Run(t.Context(), args...); err == nil {
			t.Errorf("%s: %s", strings.Join(args, " "), out)
		}
	}
}
