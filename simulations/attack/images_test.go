package attack

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/lab"
)

const (
	// importTimeout is how long the import of a hostile image may take to fail.
	importTimeout = 90 * time.Second
	// importMemoryMax is what a node may take while it imports them.
	importMemoryMax = 512 << 20
)

// TestHostileImages: whatever an image says of itself, its import fails or not, and
// the node that was asked for it lives on in its memory, with all its disks.
func TestHostileImages(t *testing.T) {
	l := newLab(t)
	n, err := l.Start(t.Context(), "alpha", "")
	if err != nil {
		t.Fatal(err)
	}
	pid := n.PID()
	fromNow(t, n)
	dir := t.TempDir()
	path := filepath.Join(dir, "it")
	for _, c := range []struct{ what, script, says string }{
		{"tables of 32 GiB", `qemu-img create -q -f qcow2 it 1M; printf '\xff\xff\xff\xff' | dd of=it bs=1 seek=36 conv=notrunc`, ""},
		{"a disk of 8 EiB", `qemu-img create -q -f qcow2 it 1M; printf '\x7f\xff\xff\xff\xff\xff\xfe\x00' | dd of=it bs=1 seek=24 conv=notrunc`, ""},
		{"clusters of 2^255", `qemu-img create -q -f qcow2 it 1M; printf '\xff' | dd of=it bs=1 seek=23 conv=notrunc`, ""},
		{"a table at the end of all", `qemu-img create -q -f qcow2 it 1M; printf '\x00\xff\xff\xff\xff\xff\xfe\x00' | dd of=it bs=1 seek=40 conv=notrunc`, ""},
		{"a table of itself", `qemu-img create -q -f qcow2 it 1G; qemu-io -c 'write 0 64k' it; printf '\x80\x00\x00\x00\x00\x03\x00\x00' | dd of=it bs=1 seek=196608 conv=notrunc`, ""},
		{"blocks of 0", `qemu-img create -q -f vdi it 1M; printf '\0\0\0\0' | dd of=it bs=1 seek=376 conv=notrunc`, ""},
		{"tables of vhdx", `qemu-img create -q -f vhdx it 1G; printf '\xff\xff\xff\xff\xff\xff' | dd of=it bs=1 seek=196616 conv=notrunc`, ""},
		{"a cut qcow2", `qemu-img create -q -f qcow2 -o cluster_size=512 it 1M; qemu-io -c 'write -P 7 0 1M' it; truncate -s 30000 it`, "cut short"},
		{"a cut tar", `head -c 1M /dev/urandom >a; tar -b1 -cf it a; truncate -s -1024 it`, "cut short"},
		{"a pipe", `mkfifo it`, "no file and no block device"},
		{"the host's accounts", `printf '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n' >it`, "several files"},
		{"a pipe as extent", `mkfifo p; printf '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 1 FLAT "p" 0\n' >it`, "several files"},
	} {
		os.Remove(path)
		cmd := exec.Command("bash", "-euc", c.script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c.what, err, out)
		}
		ctx, cancel := context.WithTimeout(t.Context(), importTimeout)
		_, err := n.Run(ctx, "image", "import", "hostile", path)
		if ctx.Err() != nil {
			t.Errorf("%s: the import goes on for ever", c.what)
		}
		cancel()
		if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want a refusal that says %q", c.what, err, c.says)
		}
		if _, err := n.Status(t.Context()); err != nil || n.PID() != pid {
			t.Fatalf("%s: the node is gone: %v\n%s", c.what, err, n.Tail(5))
		}
		run(t, n, "image", "rm", "hostile")
		os.Remove(filepath.Join(dir, "p"))
	}
	bounded(t, n, importMemoryMax)
	sound(t, n, path)
}

// sound: what is refused above is not all that is read so. The disk holds more than its
// child hands out at once.
func sound(t *testing.T, n *lab.Node, path string) {
	t.Helper()
	for _, args := range [][]string{{"qemu-img", "create", "-q", "-f", "qcow2", path, "64M"}, {"qemu-io", "-c", "write -P 7 0 20M", path}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run(t, n, "image", "import", "sound", path)
	run(t, n, "image", "export", "sound", path+".raw")
	if out, err := exec.Command("qemu-img", "compare", path, path+".raw").CombinedOutput(); err != nil {
		t.Errorf("a sound image is not what was imported: %v: %s", err, out)
	}
}
