package mesh

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// smallDisk mounts a disk of its own for the data of a node that is to be started.
func smallDisk(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, 0); err != nil {
			t.Errorf("unmount the small disk: %v", err)
		}
	})
}

// fillUp writes a file until its disk is full.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// checkDevice compares a device with an image that has the head of another file.
func checkDevice(t *testing.T, device, disk, head string) {
	t.Helper()
	want, got := sha256.New(), sha256.New()
	start, err := os.ReadFile(head)
	if err != nil {
		t.Fatal(err)
	}
	want.Write(start)
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(want, io.NewSectionReader(f, int64(len(start)), 1<<62)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nbdcopy", "--", device, "-")
	cmd.Stdout = got
	if err := cmd.Run(); err != nil {
		t.Fatalf("read %s: %v", device, err)
	}
	if hex.EncodeToString(want.Sum(nil)) != hex.EncodeToString(got.Sum(nil)) {
		t.Errorf("%s has other bytes", device)
	}
}

// write copies a file to the head of a device, in order, with a flush.
func write(t *testing.T, path, device string) {
	t.Helper()
	if err := tryWrite(path, device); err != nil {
		t.Fatal(err)
	}
}

func tryWrite(path, device string) error {
	out, err := exec.Command("nbdcopy", "--connections=1", "--requests=1", "--flush", path, device).CombinedOutput()
	if err != nil {
		return fmt.Errorf("nbdcopy: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// TestFullDisk: the disk of a node runs full. Its volume is read all the same, by
// streaming, and the node says so; writes fail with "no space", and nothing that
// was written is lost; with space again all goes on.
func TestFullDisk(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	start(t, l, store.URL, "a")
	smallDisk(t, filepath.Join(l.Dir, "a2"), 96<<20)
	n := start(t, l, store.URL, "a")[0]
	path, _ := disk(t, l.Dir, imageSize())
	run(t, l.Nodes()[0], "image", "import", "disk", path)
	device := run(t, n, "volume", "create", "v", "--from", "image:disk")
	kept, refused := filepath.Join(l.Dir, "kept"), filepath.Join(l.Dir, "refused")
	fill(t, kept, 1)
	fill(t, refused, 2)
	write(t, kept, device)

	filler := filepath.Join(n.Data, "filler")
	fillUp(t, filler)
	checkDevice(t, device, path, kept)
	if _, err := n.Run(t.Context(), "doctor"); err == nil {
		t.Error("the doctor finds nothing")
	}
	if c := get[api.Status](t, n, "/api/status").Cache; !c.Full && c.Used > c.Limit {
		t.Errorf("the cache takes more than the disk has room for: %+v", c)
	}

	more := filler + "2"
	for fillUp(t, more); tryWrite(kept, device) == nil; { // a compaction of the journal gives some back
		fillUp(t, more)
	}
	err := tryWrite(refused, device)
	t.Logf("write on a full disk: %v", err)
	if err == nil || !strings.Contains(err.Error(), "No space left on device") {
		t.Errorf("write on a full disk: %v; want no space", err)
	}
	checkDevice(t, device, path, kept) // as it was: nothing of what was refused
	checkNoSpace(t, n, path)
	if v := volume(t, n, "v"); v.State != "full" {
		t.Errorf("the volume is %s: %s", v.State, v.Detail)
	}
	if s := get[api.Status](t, n, "/api/status"); !slices.Equal(s.Failing, []string{"v"}) || s.Cache.Limit >= s.Cache.Quota {
		t.Errorf("the status says %q, and of the cache %+v", s.Failing, s.Cache)
	}

	if err := errors.Join(os.Remove(more), n.Kill()); err != nil { // a start notes under which epoch it serves a volume
		t.Fatal(err)
	}
	restart(t, n)
	checkDevice(t, device, path, kept)

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	write(t, refused, device)
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	restart(t, n)
	checkDevice(t, device, path, refused)
	if get[api.Status](t, n, "/api/status").Cache.Full {
		t.Error("the cache is said to be full still")
	}
}

// checkNoSpace lets the node import from standard input, which it keeps in its
// folder.
func checkNoSpace(t *testing.T, n *lab.Node, path string) {
	t.Helper()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.Command(n.Lab().Binary, "image", "import", "piped", "-", "--data", n.Data)
	cmd.Stdin = in
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no space left") {
		t.Errorf("an import into a full folder: %v: %s", err, out)
	}
	t.Logf("import on a full disk: %s", strings.TrimSpace(string(out)))
	if left, _ := filepath.Glob(filepath.Join(n.Data, "*.spool")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
