package mesh

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/debian"
)

// looks are what people do to be sure of a folder of files: each says the same of two that are the same. The times of
// reading and of changes to attributes, and the sizes that file systems give folders, are nobody's.
func looks() map[string]string {
	return map[string]string{
		"find": `find . \( -type d -printf '%p %y %m %U:%G %T@\n' \) -o -printf '%p %y %m %U:%G %T@ %s %n %l\n' | sort`,
		"tar":  `tar c --xattrs --xattrs-include='*' --acls --numeric-owner --sort=name --format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=%d/%f . | sha256sum`,
		"dpkg": `dpkg --root="$PWD" --verify; dpkg --root="$PWD" -l | sort`,
	}
}

// TestDebianMounted: the root of a system that a cold farm mounts is the one that was imported, whoever looks: with all that find
// knows of its files, in an archive of it, and to its package manager.
func TestDebianMounted(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	system, err := debian.Build(t.Context(), filepath.Join(cache, "grange", "debian"), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "b")
	t.Log(run(t, nodes[0], "tree", "import", "system", system.Root))
	stored := int64(get[api.Image](t, nodes[0], "/api/trees/system").Stored)
	before, at := store.Sent("packs/"), t.TempDir()
	if _, err := nodes[1].Within(t.Context(), "tree", "mount", "system", at); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("/proc", fmt.Sprint(nodes[1].PID()), "root", at) // nodes of a lab have mounts of their own
	for name, script := range looks() {
		seen := map[string]string{}
		for _, in := range []string{system.Root, dir} {
			cmd := exec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-c", script)
			cmd.Dir = in
			out, err := cmd.CombinedOutput()
			if err != nil || len(out) < 64 {
				t.Fatalf("%s in %s: %v: %s", name, in, err, out)
			}
			seen[in] = string(out)
		}
		if seen[dir] != seen[system.Root] {
			t.Errorf("%s sees other things", name)
		}
		t.Logf("%s: %.80q", name, seen[dir])
	}
	if sent := store.Sent("packs/") - before; sent > stored/10 {
		t.Errorf("the store sent %d bytes for what a member has, of %d that are stored", sent, stored)
	}
	run(t, nodes[1], "tree", "unmount", at)
	table(t, l)
}
