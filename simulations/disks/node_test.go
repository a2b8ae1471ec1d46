package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// node is a running `grange node` whose data and origin are in one folder.
type node struct {
	command, data string
	cmd           *exec.Cmd
	log           *log
	ended         chan struct{}
}

// log keeps what a node says.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a node and waits until it is ready.
func start(ctx context.Context, command, dir string) (*node, error) {
	n := &node{command: command, data: filepath.Join(dir, "data"), log: new(log), ended: make(chan struct{})}
	n.cmd = exec.Command(command, "node", "--data", n.data, "--origin", "file://"+filepath.Join(dir, "origin"), "--listen", "/ip4/127.0.0.1/tcp/0")
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "origin"), 0o755), n.cmd.Start()); err != nil {
		return nil, err
	}
	go func() {
		_ = n.cmd.Wait() // stop and kill know what to expect
		close(n.ended)
	}()
	return n, n.await(ctx)
}

// await returns when the node is ready.
func (n *node) await(ctx context.Context) error {
	return n.until(ctx, func() bool {
		_, err := n.run(ctx, "status")
		return err == nil
	})
}

// until asks again and again whether something is so.
func (n *node) until(ctx context.Context, so func() bool) error {
	const pause = 50 * time.Millisecond
	for !so() {
		select {
		case <-n.ended:
			return fmt.Errorf("the node has ended:\n%s", n.log)
		case <-ctx.Done():
			return fmt.Errorf("%w:\n%s", ctx.Err(), n.log)
		case <-time.After(pause):
		}
	}
	return nil
}

// says counts the lines of a message in the node's log.
func (n *node) says(message string) int { return strings.Count(n.log.String(), "INF "+message) }

// warns is says of warnings.
func (n *node) warns(message string) int { return strings.Count(n.log.String(), "WRN "+message) }

// handOver has the node become its program anew, and returns when it serves.
func (n *node) handOver(ctx context.Context) error {
	before := n.says("serving")
	if err := n.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		return err
	}
	if err := n.until(ctx, func() bool { return n.says("serving") > before }); err != nil {
		return err
	}
	return n.await(ctx)
}

// keepWaiting begins a request of which the rest never comes: a stop waits for it.
func (n *node) keepWaiting(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.data, "api.sock"))
	if err == nil {
		_, err = io.WriteString(conn, "PUT /api/images/disk HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	}
	return conn, err
}

// run asks the node by the command line.
func (n *node) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, n.command, args...)
	cmd.Env = append(os.Environ(), "GRANGE_DATA="+n.data)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (n *node) stop() error {
	err := n.cmd.Process.Signal(syscall.SIGTERM)
	<-n.ended
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		err = errors.Join(err, fmt.Errorf("the node ended with %d:\n%s", code, n.log))
	}
	return err
}

func (n *node) kill() error {
	err := n.cmd.Process.Kill()
	<-n.ended
	return err
}

// founded returns the folder of a mesh, copied from the guest's disk once.
func founded(t *testing.T) string {
	t.Helper()
	const dir = "/tmp/mesh"
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	shell(t, "mkdir /tmp/disk && mount -o ro /dev/vdb /tmp/disk && cp -r /tmp/disk "+dir+".new && umount /tmp/disk && mv "+dir+".new "+dir)
	return dir
}

// begin starts a node that the end of the test stops.
func begin(t *testing.T) *node {
	t.Helper()
	return beginAs(t, "./grange", founded(t))
}

// beginAs starts a node by another command, or of another folder, than the usual.
func beginAs(t *testing.T, command, dir string) *node {
	t.Helper()
	n, err := start(t.Context(), command, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-n.ended:
		default:
			if err := n.stop(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Logf("the node says:\n%s", n.log)
		}
	})
	return n
}

// must runs a command of the node's that succeeds.
func (n *node) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.run(t.Context(), args...)
	if err != nil {
		t.Fatalf("grange %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// device is must of a command that prints a device, maybe after a warning.
func (n *node) device(t *testing.T, args ...string) string {
	t.Helper()
	out := n.must(t, args...)
	return out[strings.LastIndexByte(out, '\n')+1:]
}

// setpriv writes a command that is the usual one with other rights.
func setpriv(t *testing.T, options string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "grange")
	if err := os.WriteFile(file, []byte("#!/bin/sh\nexec setpriv "+options+" ./grange \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}
