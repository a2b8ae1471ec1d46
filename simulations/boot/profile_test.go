package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/lab"
)

// profiles is how the Debian image is booted; a guest that is emulated may take minutes where others are too.
func profiles(image debian.Image, more ...string) []string {
	return append([]string{"image", "profile", "debian", "--kernel", image.Kernel, "--initrd", image.Initrd, "--append", "root=/dev/vda rw console=ttyS0 net.ifnames=0", "--timeout", "10m"}, more...)
}

// TestProfile: a real image is booted in a machine that is thrown away, and what that reads is in its record and kept. Of one that is
// cancelled, or whose node is killed, nothing is left.
func TestProfile(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := debian.Build(t.Context(), filepath.Join(cache, "grange", "debian"), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), lab.Command(), t.TempDir())
	if err != nil {
		t.Fatal(err)
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
	})
	l.Env = append(l.Env, "GRANGE_INSTANCE_EMULATOR=tcg") // where there is KVM it may be another's to give
	n, err := l.StartAs(t.Context(), "publisher", "a", "file://"+t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	run(t, n, "image", "import", "debian", image.Disk)
	given(t, n, image, func() error {
		if err := n.Kill(); err != nil {
			return err
		}
		return n.Restart(t.Context())
	})
	given(t, n, image, func() error {
		_, err := n.Run(t.Context(), "operation", "cancel", profiling(t, n).ID)
		return err
	})
	if op := profiling(t, n); op.State != "cancelled" {
		t.Errorf("it is %s: %s", op.State, op.Error)
	}
	out := run(t, n, profiles(image)...)
	t.Log(out)
	said := regexp.MustCompile(`(\d+) chunks; boots: 1 for this`).FindStringSubmatch(out)
	if said == nil {
		t.Fatalf("it says %q", out)
	}
	if chunks, _ := strconv.Atoi(said[1]); chunks < 300 || chunks > 700 {
		t.Errorf("a boot reads %d chunks", chunks)
	}
	again := said[1] + " chunks; boots: 0 for this, 1 kept on this node before"
	if out := run(t, n, profiles(image, "--runs", "0")...); !strings.Contains(out, again) {
		t.Errorf("without a boot it says %q, want %q", out, again)
	}
	nothingLeft(t, n)
}

// given begins to profile, and has it end by what is done once the guest reads.
func given(t *testing.T, n *lab.Node, image debian.Image, ends func() error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := n.Run(t.Context(), profiles(image)...)
		ended <- err
	}()
	for tick := time.Tick(200 * time.Millisecond); profiling(t, n).Done < 30; {
		select {
		case <-tick:
		case err := <-ended:
			t.Fatalf("it has ended by itself: %v", err)
		}
	}
	if len(emulators(n)) != 1 {
		t.Errorf("processes %v boot", emulators(n))
	}
	if err := ends(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("what was given up has succeeded")
	}
	nothingLeft(t, n)
}

// profiling is the last operation that profiles.
func profiling(t *testing.T, n *lab.Node) (op api.Operation) {
	t.Helper()
	_, answer, err := n.Ask(t.Context(), http.MethodGet, "/api/operations", "")
	var all []api.Operation
	if err == nil {
		err = json.Unmarshal(answer, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range all {
		if op.Kind == "profile" {
			return op
		}
	}
	return op
}

// nothingLeft fails where a machine runs that was to be thrown away, or there are working files of one.
func nothingLeft(t *testing.T, n *lab.Node) {
	t.Helper()
	late := time.After(time.Minute)
	for tick := time.Tick(50 * time.Millisecond); len(emulators(n)) > 0; {
		select {
		case <-tick:
		case <-late:
			t.Fatalf("machines %v go on", emulators(n))
		}
	}
	left, err := os.ReadDir(filepath.Join(n.Data, images.TempDir))
	if err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}

// emulators are the processes of this host that work below a node's folder of working files.
func emulators(n *lab.Node) (out []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range all {
		if env, err := os.ReadFile(path); err == nil && bytes.HasPrefix(env, fmt.Appendf(nil, "TMPDIR=%s/boot", filepath.Join(n.Data, images.TempDir))) {
			out = append(out, path)
		}
	}
	return out
}
