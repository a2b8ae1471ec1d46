// Package attack keeps what hostile programs have tried on nodes: strangers without a
// certificate, members gone bad, writers of a bucket who have no key, clients of the
// API who never end. Each test is named for what must not happen; the nodes are real
// processes on hosts of their own.
package attack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

const (
	// imageSize of the disks that are attacked: some runs, and no more.
	imageSize = 6 << 20
	// readTimeout is how long a guest may be held up altogether by all that is done
	// to it: many times what an honest mesh takes, less than the two minutes after
	// which a read used to fail.
	readTimeout = 45 * time.Second
	// quietTime is how long a test waits to see that something does not come.
	quietTime = 3 * time.Second
	// residentMax is what a node may take under an attack, in bytes.
	residentMax = 256 << 20
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(t.Context(), lab.Command(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range l.Nodes() {
				t.Logf("── %s\n%s", n.Name, n.Tail(15))
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// start starts a node on each farm that is named; all find the first one's folder.
func start(t *testing.T, l *lab.Lab, farms ...string) (nodes []*lab.Node) {
	t.Helper()
	for _, farm := range farms {
		n, err := l.Start(t.Context(), farm, "")
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// outside makes a host that is of no farm.
func outside(t *testing.T, l *lab.Lab) *netns.Host {
	t.Helper()
	h, err := l.Net.Host(t.Context(), "outside")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func run(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// get asks the node's API.
func get[T any](t *testing.T, n *lab.Node, path string) (v T) {
	t.Helper()
	if err := n.Get(t.Context(), path, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func statusOf(t *testing.T, n *lab.Node) api.Status {
	t.Helper()
	return get[api.Status](t, n, "/api/status")
}

// disk is an image's bytes, which no other seed gives; every chunk of it is data.
type disk struct {
	path  string
	bytes []byte
}

func newDisk(t *testing.T, dir string, size int64, seed byte) disk {
	t.Helper()
	d := disk{filepath.Join(dir, fmt.Sprintf("disk%d.raw", seed)), make([]byte, size)}
	rand.NewChaCha8([32]byte{seed}).Read(d.bytes)
	if err := os.WriteFile(d.path, d.bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

// read makes a volume from an image and fails unless it gives the disk's bytes in
// time.
func (d disk) read(t *testing.T, n *lab.Node, volume, image string) {
	t.Helper()
	if err := d.tryRead(t.Context(), n, volume, image); err != nil {
		t.Errorf("%s reads %s: %v", n.Name, image, err)
	}
}

func (d disk) tryRead(ctx context.Context, n *lab.Node, volume, image string) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	device, err := n.Run(ctx, "volume", "create", volume, "--from", "image:"+image)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "nbdcopy", "--", strings.TrimSpace(device), "-")
	cmd.Stderr = &said
	got, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no end after %s, %d bytes", readTimeout, len(got))
	case err != nil:
		return fmt.Errorf("nbdcopy: %w: %s", err, said.String())
	case sha256.Sum256(got) != sha256.Sum256(d.bytes):
		return errors.New("other bytes")
	}
	return nil
}

// until waits for a condition, which is asked several times a second.
func until(t *testing.T, what string, met func(context.Context) bool) {
	t.Helper()
	if !within(t.Context(), readTimeout, met) {
		t.Fatalf("%s: not within %s", what, readTimeout)
	}
}

// within reports whether a condition is met in time.
func within(ctx context.Context, d time.Duration, met func(context.Context) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !met(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// never fails when a condition is met within quietTime.
func never(t *testing.T, what string, met func(context.Context) bool) {
	t.Helper()
	if within(t.Context(), quietTime, met) {
		t.Error(what)
	}
}

// resident returns what a process takes now, and took at most, in bytes.
func resident(t *testing.T, n *lab.Node) (now, peak int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		switch {
		case err != nil:
		case f[0] == "VmRSS:":
			now = kib << 10
		case f[0] == "VmHWM:":
			peak = kib << 10
		}
	}
	return now, peak
}

// fromNow forgets what the process took at most so far.
func fromNow(t *testing.T, n *lab.Node) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", n.PID()), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// bounded fails when a node took more than limit since fromNow.
func bounded(t *testing.T, n *lab.Node, limit int64) {
	t.Helper()
	now, peak := resident(t, n)
	t.Logf("%s: resident %d MiB, at most %d MiB", n.Name, now>>20, peak>>20)
	if peak > limit {
		t.Errorf("%s took %d MiB; the limit is %d MiB", n.Name, peak>>20, limit>>20)
	}
}
