package volumes

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/simulations/guest"
	"github.com/grangemesh/grange/simulations/soak"
)

// shell runs a script that finds words as $1 and on.
func shell(t *testing.T, script string, words ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", append([]string{"-euo", "pipefail", "-c", script, "test"}, words...)...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// machine is the kernel of this machine as a guest of a volume: a loop device over a file
// that an NBD client shows, which is of no use once its connection has ended.
type machine struct {
	*testing.T
	dir    string // of the file system
	shows  string // of the client's file
	loop   string
	client *exec.Cmd
}

// boot opens a device, and makes its file system if it has none.
func (m *machine) boot(device string, blank bool) {
	m.Helper()
	m.shows = m.TempDir()
	file := filepath.Join(m.shows, "disk")
	var said bytes.Buffer
	m.client = exec.Command("nbdfuse", file, device)
	m.client.Stdout, m.client.Stderr = &said, &said
	if err := m.client.Start(); err != nil {
		m.Fatal(err)
	}
	until(m.T, "the NBD client shows its disk", func(context.Context) bool {
		_, err := os.Stat(file)
		return err == nil
	})
	m.loop = shell(m.T, "losetup -f --show $1", file)
	if blank {
		shell(m.T, "mkfs.ext4 -q $1", m.loop)
	}
	shell(m.T, "mount $1 $2", m.loop, m.dir)
}

// end takes the disk away.
func (m *machine) end() {
	// The loop device goes when the kernel has let go of it.
	shell(m.T, "losetup -d $1; until umount $2 2>/dev/null; do sleep 0.05; done", m.loop, m.shows)
	_ = m.client.Wait() // it has lost its server
	m.client = nil
}

// TestFileSystemsOutliveTheirNode kills a node under a file system, which is over for its
// kernel then. Mounted again it has what was synced, and is whole.
func TestFileSystemsOutliveTheirNode(t *testing.T) {
	n := alone(t)
	device, err := n.Run(t.Context(), "volume", "create", "disk", "--transport", "nbd", "--size", "32MiB")
	if err != nil {
		t.Fatal(err)
	}
	device = strings.TrimSpace(device)
	m := &machine{T: t, dir: t.TempDir()}
	t.Cleanup(func() {
		if m.client != nil { // the test has failed
			_ = exec.Command("sh", "-c", "umount -l $1 $2; losetup -d $3", "test", m.dir, m.shows, m.loop).Run()
			_ = m.client.Process.Kill()
			_ = m.client.Wait()
		}
	})
	m.boot(device, true)
	f, err := guest.NewFiles(m.dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	for round := range soak.Rounds(20) {
		w := begun(t, "the file system", f.Step)
		goesOn(t, w, 20)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := w.Progress(t.Context(), 1<<30); err == nil {
			t.Fatal("the file system goes on without its disk")
		}
		shell(t, "umount $1", m.dir)
		m.end()
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.boot(device, false)
		if err := f.Check(); err != nil {
			t.Fatalf("round %d, of %d syncs: %v", round, f.Synced(), err)
		}
		shell(t, "umount $1 && e2fsck -fn $2 && mount $2 $1", m.dir, m.loop)
	}
	t.Logf("%d syncs, none was lost", f.Synced())
	shell(t, "umount $1", m.dir)
	m.end()
}
