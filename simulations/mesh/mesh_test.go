// Package mesh tests whole meshes: real nodes on hosts with real addresses, a
// real S3 server, volumes read by real clients.
package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// imageSize of the disk that tests publish: in CI a small one.
func imageSize() int64 { return soak.Of[int64](96<<20, 512<<20) }

// TestMain: the test binary is also the liar, a program that tests run in the place of a node.
func TestMain(m *testing.M) {
	if plan := os.Getenv(liarVariable); plan != "" {
		os.Exit(lie(plan))
	}
	os.Exit(lab.Main(m.Run))
}

// newLab has the test run beside others: a mesh mostly waits.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	t.Parallel()
	dir := t.TempDir()
	l, err := lab.New(t.Context(), lab.Command(), dir)
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

// disk writes an image with data that compresses to half, and holes.
func disk(t *testing.T, dir string, size int64) (path, sum string) {
	t.Helper()
	return seededDisk(t, dir, size, 0)
}

// seededDisk is disk with data that no other seed gives.
func seededDisk(t *testing.T, dir string, size int64, seed byte) (path, sum string) {
	t.Helper()
	path = filepath.Join(dir, fmt.Sprintf("disk%d.raw", seed))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng := rand.NewChaCha8([32]byte{seed})
	block := make([]byte, 1<<20)
	hash := sha256.New()
	for off := int64(0); off < size; off += int64(len(block)) {
		clear(block)
		if off%(8<<20) != 0 {
			for at := 0; at < len(block); at += 8192 {
				rng.Read(block[at : at+4096])
			}
			if _, err := f.WriteAt(block, off); err != nil {
				t.Fatal(err)
			}
		}
		hash.Write(block)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path, hex.EncodeToString(hash.Sum(nil))
}

func run(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// read makes a volume from an image and returns the hash of all that it gives.
func read(ctx context.Context, n *lab.Node, volume, image string) (string, error) {
	device, err := n.Run(ctx, "volume", "create", volume, "--from", "image:"+image)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "nbdcopy", "--", strings.TrimSpace(device), "-")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	hash := sha256.New()
	_, err = io.Copy(hash, out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return "", fmt.Errorf("nbdcopy on %s: %w", n.Name, err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// readAll lets all nodes read at once.
func readAll(t *testing.T, nodes []*lab.Node, volume, image, want string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			got, err := read(t.Context(), n, volume+"-"+n.Name, image)
			if err != nil {
				t.Errorf("%s: %v", n.Name, err)
			} else if got != want {
				t.Errorf("%s read other bytes", n.Name)
			}
		})
	}
	wg.Wait()
}

// front starts a store and opens an address of it that counts.
func front(t *testing.T, l *lab.Lab) (*lab.Store, *lab.Front) {
	t.Helper()
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := store.Front(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return store, f
}

// start starts a node on each farm that is named.
func start(t *testing.T, l *lab.Lab, origin string, farms ...string) []*lab.Node {
	t.Helper()
	var nodes []*lab.Node
	for _, farm := range farms {
		n, err := l.Start(t.Context(), farm, origin)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// get asks the node's API.
func get[T any](t *testing.T, n *lab.Node, path string) (v T) {
	t.Helper()
	if err := n.Get(t.Context(), path, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// metric is one of the node's at /metrics.
func metric(t *testing.T, n *lab.Node, name string) float64 {
	t.Helper()
	v, err := n.Metric(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func table(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, n := range l.Nodes() {
		if b, err := n.Bytes(t.Context()); err == nil {
			t.Logf("%-6s cache %4d, farm %4d, swarm %4d, origin %4d MiB", n.Name, b.Cache>>20, b.Farm>>20, b.Swarm>>20, b.Origin>>20)
		}
	}
}
