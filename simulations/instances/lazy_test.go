package instances

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// reader reads what files it is told to by ones called read.FILE, and says that.
const reader = `{"from":"tree:site","lazy":true,"no_port":true,"ready":"log:begun","grace_seconds":10,"command":["/bin/sh","-c","sha256sum d00/f0; echo begun; while :; do for f in read.*; do [ -e $f ] && sha256sum ${f#read.} && rm $f; done; sleep 0.1; done"]}`

// TestLazyStart: a workload starts before its data are here, outlives its node as others do, waits for what it reads meanwhile,
// and what it has changed is all that is sent.
func TestLazyStart(t *testing.T) {
	front, nodes := farms(t, "a", "b")
	a, b := nodes[0], nodes[1]
	src := site(t)
	if _, err := a.Run(t.Context(), "tree", "import", "site", src, "--scope", "mesh"); err != nil {
		t.Fatal(err)
	}
	i := reach(t, b, http.MethodPut, "web", reader, "provisioned")
	if got, want := packed(t, b, i.Dir), packed(t, a, src); got != want {
		t.Errorf("what it shows is not what it began as: %s, want %s", got, want)
	}
	on(t, b, "", "sh", "-c", "cd "+i.Dir+"; echo more >> d03/f3; rm d02/f22; mkdir new; mv d01/f1 new/moved; mv d04 new/d04; chmod 600 d05/f5; echo first > notes; ln notes names")

	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	on(t, b, "", "touch", i.Dir+"/read.d19f199")
	if err := b.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	says(t, b, i, fmt.Sprintf("%x  d19f199", sha256.Sum256(read(t, filepath.Join(src, "d19f199")))))
	if now := reach(t, b, http.MethodGet, "web", "", "provisioned"); now.PID != i.PID {
		t.Errorf("it ran as %d, and is %d now", i.PID, now.PID)
	}

	reach(t, b, http.MethodPost, "web/hibernate", "", "hibernated")
	want := packed(t, b, i.Dir)
	dead(t, filepath.Dir(i.Dir)) // as a boot of the host has it
	reach(t, b, http.MethodPost, "web/wake", "", "provisioned")
	reach(t, b, http.MethodPost, "web/hibernate", "", "hibernated")
	if got := packed(t, b, i.Dir); got != want {
		t.Errorf("it wakes with %s, want %s", got, want)
	}
	before := front.Taken("packs/")
	reach(t, b, http.MethodPost, "web/deprovision", "", "unprovisioned")
	if sent := front.Taken("packs/") - before; sent > 2<<20 {
		t.Errorf("%d bytes were sent although little has changed", sent)
	} else {
		t.Logf("%d bytes were sent", sent)
	}
	if _, err := os.Stat(filepath.Dir(i.Dir)); !os.IsNotExist(err) {
		t.Errorf("its folder: %v", err)
	}
	for _, lazy := range []string{"true", "false"} {
		i = reach(t, b, http.MethodPut, "web", strings.Replace(strings.Replace(reader, `"lazy":true`, `"lazy":`+lazy, 1), "sha256sum d00/f0;", "", 1), "provisioned")
		reach(t, b, http.MethodPost, "web/hibernate", "", "hibernated")
		if got := packed(t, b, i.Dir); got != want {
			t.Errorf("lazy %s: it has %s, want %s", lazy, got, want)
		}
		reach(t, b, http.MethodPost, "web/deprovision", "", "unprovisioned")
	}
}

// site is a folder of files of all kinds.
func site(t *testing.T) string {
	t.Helper()
	src := filepath.Join(t.TempDir(), "src")
	random := rand.NewChaCha8([32]byte{2})
	write := func(path string, size int) {
		data := make([]byte, size)
		_, _ = random.Read(data)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for k := range 200 {
		write(filepath.Join(src, fmt.Sprintf("d%02d", k%20), fmt.Sprint("f", k)), 1000+k*k*20)
	}
	write(filepath.Join(src, "d19f199"), 8<<20)
	all := []string{
		"truncate -s 3M sparse; printf x | dd of=sparse bs=1 seek=2000000 conv=notrunc 2>/dev/null", "ln -s d00/f0 link; ln -s nowhere dangling", "ln d07/f7 d07/other",
		"mkfifo pipe; mknod null c 1 3", "chown -R nobody d10; chmod 4755 d10/f10; chmod 1777 d11",
		"touch -d '1999-01-01 00:00:00.123456789' d12/f12 d12", "chmod 750 .; chown daemon .",
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", strings.Join(all, "\n"))
	cmd.Dir = src
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, x := range [][3]string{{"d06/f6", "user.word", "value"}, {"d08/f8", "system.posix_acl_access", access}, {"d08", "system.posix_acl_default", access}, {"d09/f9", "security.capability", capability}} {
		if err := unix.Setxattr(filepath.Join(src, x[0]), x[1], []byte(x[2]), 0); err != nil {
			t.Fatal(err)
		}
	}
	return src
}

const (
	// access is an access list with uid 1000, and capability CAP_NET_RAW, permitted and effective, as Linux keeps them.
	access     = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

// packed is the sum of all that can be told of what is in a folder.
func packed(t *testing.T, n *lab.Node, dir string) string {
	t.Helper()
	return on(t, n, "", "sh", "-ec", "cd "+dir+"; tar c --sort=name --numeric-owner --format=pax --pax-option=exthdr.name=x,delete=atime,delete=ctime --xattrs --xattrs-include=* --acls . | sha256sum; find . | wc -l")
}

// says waits until a workload has said something.
func says(t *testing.T, n *lab.Node, i api.Instance, what string) {
	t.Helper()
	for tick := time.Tick(50 * time.Millisecond); ; <-tick {
		if _, said, err := n.Ask(t.Context(), http.MethodGet, "/api/instances/"+i.Name+"/logs", ""); err != nil {
			t.Fatal(err)
		} else if strings.Contains(string(said), what) {
			return
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dead ends what shows the data of an instance, in a folder.
func dead(t *testing.T, dir string) {
	t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	found := false
	for _, path := range all {
		if env, err := os.ReadFile(path); err == nil && strings.Contains(string(env), "GRANGE_INSTANCE_LOWER="+dir) {
			var pid int
			_, _ = fmt.Sscanf(path, "/proc/%d/", &pid)
			found = unix.Kill(pid, unix.SIGKILL) == nil
		}
	}
	if !found {
		t.Errorf("nothing shows what is in %s", dir)
	}
}
