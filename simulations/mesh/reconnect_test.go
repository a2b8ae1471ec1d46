package mesh

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// guest is QEMU with a volume, which it opens again when the node comes back.
type guest struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	says *bufio.Scanner
}

// boot starts a guest that does what it is told, or is asked later, one request at a
// time: it sees only the first line of what came at once.
func boot(t *testing.T, n *lab.Node, volume string, does ...string) *guest {
	t.Helper()
	g := &guest{cmd: exec.Command("qemu-io", "--image-opts", fmt.Sprintf("driver=nbd,server.type=unix,server.path=%s,export=%s,reconnect-delay=60,open-timeout=60", filepath.Join(n.Data, "nbd.sock"), volume))}
	for _, command := range does {
		g.cmd.Args = append(g.cmd.Args, "-c", command)
	}
	var err error
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.cmd.Stderr = g.cmd.Stdout
	g.says = bufio.NewScanner(out)
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = g.cmd.Process.Kill(), g.cmd.Wait() })
	return g
}

func (g *guest) ask(t *testing.T, command string) {
	t.Helper()
	if _, err := io.WriteString(g.in, command+"\n"); err != nil {
		t.Fatal(err)
	}
}

// await reads what the guest says until it has said a word; it says of each request
// that it is done, or why not.
func (g *guest) await(t *testing.T, word string) {
	t.Helper()
	for g.says.Scan() {
		switch line := g.says.Text(); {
		case strings.Contains(line, word):
			return
		case strings.Contains(line, "failed"), strings.Contains(line, "error"):
			t.Fatalf("the guest: %s", line)
		}
	}
	t.Fatalf("the guest ended and did not say %q", word)
}

// TestGuestOutlivesItsNode rewrites a volume again and again; the node is killed
// meanwhile, and hands over. The guest sees no error, and the journal stays small.
func TestGuestOutlivesItsNode(t *testing.T) {
	size, passes := 32, 8 // MiB
	if soak.Full() {
		size, passes = 256, 16
	}
	l := newLab(t)
	n := start(t, l, "file://"+filepath.Join(l.Dir, "origin"), "a")[0]
	run(t, n, "volume", "create", "disk", "--size", fmt.Sprintf("%dMiB", size), "--transport", "nbd")
	g := boot(t, n, "disk")
	for pass := range passes {
		for at := range size {
			g.ask(t, fmt.Sprintf("write %s -P %d %dM 1M", map[bool]string{true: "-f"}[at%16 == 15], pass+1, at))
			if at == size/2 {
				switch pass % 4 {
				case 1:
					if err := n.Kill(); err != nil {
						t.Fatal(err)
					}
					restart(t, n)
				case 3:
					if err := n.Signal(syscall.SIGUSR2); err != nil {
						t.Fatal(err)
					}
				}
			}
			g.await(t, "wrote 1048576/1048576")
		}
	}
	for at := range size {
		g.ask(t, fmt.Sprintf("read -P %d %dM 1M", passes, at))
		g.await(t, "read 1048576/1048576")
	}
	// What is written while it is compacted counts beside what was there before: at most
	// all of the disk again.
	v := get[api.Volume](t, n, "/api/volumes/disk")
	if v.DirtyBytes > int64(2*size)<<20 || v.DiskBytes > int64(2*size+256)<<20 {
		t.Errorf("%d bytes are dirty, and the journal takes %d", v.DirtyBytes, v.DiskBytes)
	}
}

// TestHandoverRevertsNothing has a guest leave many writes behind while the node hands
// over; another one then writes to the same place, and has the last word.
func TestHandoverRevertsNothing(t *testing.T) {
	l := newLab(t)
	n := start(t, l, "file://"+filepath.Join(l.Dir, "origin"), "a")[0]
	run(t, n, "volume", "create", "disk", "--size", "8MiB", "--transport", "nbd")
	next := boot(t, n, "disk")
	for range soak.Rounds(1000) {
		gone := boot(t, n, "disk", slices.Concat([]string{"write -P 1 0 64k"}, slices.Repeat([]string{"aio_write -P 170 0 64k"}, 64), []string{"sleep 60000"})...)
		gone.await(t, "wrote")
		if err := n.Signal(syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		if err := gone.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = gone.cmd.Wait()
		next.ask(t, "write -f -P 187 0 64k")
		next.await(t, "wrote")
		for range 3 {
			next.ask(t, "read -P 187 0 64k")
			next.await(t, "read 65536/65536")
		}
		run(t, n, "status", "--wait", "30s")
	}
}
