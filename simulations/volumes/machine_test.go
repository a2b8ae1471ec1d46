package volumes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/guest"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
	"github.com/grangemesh/grange/simulations/vm"
)

// guestVariable has the test binary be the program of a virtual machine.
const guestVariable = "GRANGE_VOLUMES_GUEST"

// The disks of the machine: one that tells it to stop, a volume for a file system, and one
// that it writes past all caches.
const (
	stopDisk, filesDisk, shadowDisk = "/dev/vdb", "/dev/vdc", "/dev/vdd"
	stopWord                        = "stop"
)

// insideMachine changes its disks until it is told to stop, says a line for each file that
// the file system has synced, and ends with what was wrong.
func insideMachine() error {
	const dir = "/mnt"
	if err := inMachine("mkfs.ext4 -q " + filesDisk + " && mount " + filesDisk + " " + dir + " && dmesg -C"); err != nil {
		return err
	}
	d, err := guest.OpenDevice(shadowDisk)
	if err != nil {
		return err
	}
	shadow := guest.NewShadow(d, 4<<20, uint64(time.Now().UnixNano()))
	past := guest.Begin("what is written past the caches", shadow.Step)
	files, err := guest.NewFiles(dir, uint64(time.Now().UnixNano()))
	for err == nil && !toldToStop() {
		if err = files.Step(); err == nil {
			fmt.Println("synced", files.Synced())
		}
	}
	return errors.Join(err, past.Stop(), shadow.Check(),
		inMachine("umount "+dir+" && e2fsck -fn "+filesDisk+" && mount "+filesDisk+" "+dir), files.Check(),
		inMachine("if dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|read-only'; then false; fi"))
}

func inMachine(script string) error {
	out, err := exec.Command("bash", "-euc", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// toldToStop reads the first disk past the page cache.
func toldToStop() bool {
	out, err := exec.Command("dd", "if="+stopDisk, "bs=512", "count=1", "iflag=direct", "status=none").Output()
	return err == nil && bytes.HasPrefix(out, []byte(stopWord))
}

// reconnecting is how qemu is told of a disk that it waits for when its server is away.
func reconnecting(t *testing.T, n *lab.Node, name, size string) string {
	t.Helper()
	device, err := n.Run(t.Context(), "volume", "create", name, "--transport", "nbd", "--size", size)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(strings.TrimSpace(device))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{"driver": "raw", "file": map[string]any{
		"driver": "nbd", "server": map[string]string{"type": "unix", "path": u.Query().Get("socket")}, "export": name, "reconnect-delay": reconnectSeconds,
	}})
	if err != nil {
		t.Fatal(err)
	}
	return "json:" + string(b)
}

// TestMachineGoesOn boots a virtual machine on two volumes, and kills their node, which is
// away for 5, 30 and 120 s: no file system becomes read-only, no request fails, and nothing
// that was acknowledged is lost or comes back.
func TestMachineGoesOn(t *testing.T) {
	n := alone(t)
	stop := filepath.Join(t.TempDir(), "stop")
	if err := os.WriteFile(stop, make([]byte, block), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	served := []string{reconnecting(t, n, "files", "24MiB"), reconnecting(t, n, "shadow", "4MiB")}
	go func() {
		status, err := vm.Run(ctx, vm.Config{Binary: "/proc/self/exe", Env: []string{guestVariable + "=1"}, Disks: []string{stop}, Served: served, Output: w, Timeout: time.Hour, MemoryMiB: 512})
		if err == nil && status != 0 {
			err = fmt.Errorf("its status is %d", status)
		}
		ended <- err
		w.Close()
	}()
	lines := bufio.NewScanner(r)
	said := func() string {
		if !lines.Scan() {
			t.Fatalf("the machine has ended: %v", <-ended)
		}
		return lines.Text()
	}
	defer func() {
		cancel()
		_, _ = io.Copy(io.Discard, r) // until it has ended
	}()
	goesOn := func() {
		for steps := 0; steps < 10; {
			if line := said(); strings.HasPrefix(line, "synced ") {
				steps++
			} else {
				t.Errorf("the machine: %s", line)
			}
		}
	}
	for _, outage := range soak.Of([]time.Duration{5 * time.Second}, []time.Duration{5 * time.Second, 30 * time.Second, 120 * time.Second}) {
		goesOn()
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		<-time.After(outage)
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("the node was away for %s", outage)
	}
	goesOn()
	file, err := os.OpenFile(stop, os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString(stopWord)
	}
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	last := ""
	for lines.Scan() {
		if last = lines.Text(); !strings.HasPrefix(last, "synced ") {
			t.Errorf("the machine: %s", last)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	t.Log(last)
}
