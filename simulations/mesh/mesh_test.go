// Package mesh tests whole meshes: real nodes on hosts with real addresses, a
// real S3 server, volumes read by real clients.
package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// imageSize of the disk that tests publish: in CI a small one.
func imageSize() int64 {
	if os.Getenv("GRANGE_SOAK") != "" {
		return 512 << 20
	}
	return 96 << 20
}

// binary builds the command under test, once for the package's tests.
func binary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "grange")
	cmd := exec.Command("go", "build", "-o", path, "github.com/grangemesh/grange/cmd/grange")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return path
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	dir := t.TempDir()
	l, err := lab.New(t.Context(), binary(t), dir)
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
	path = filepath.Join(dir, "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng := rand.NewChaCha8([32]byte{7})
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
	_, cerr := io.Copy(hash, out)
	if err := cmd.Wait(); err != nil || cerr != nil {
		return "", fmt.Errorf("nbdcopy on %s: %w, %w", n.Name, err, cerr)
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

// fromOrigin is how many bytes all nodes have read from the store.
func fromOrigin(t *testing.T, l *lab.Lab) int64 {
	t.Helper()
	var total int64
	for _, n := range l.Nodes() {
		s, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		total += s.Origin.BytesIn
	}
	return total
}

func table(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, n := range l.Nodes() {
		if b, err := n.Bytes(t.Context()); err == nil {
			t.Logf("%-6s cache %4d, farm %4d, swarm %4d, origin %4d MiB", n.Name, b.Cache>>20, b.Farm>>20, b.Swarm>>20, b.Origin>>20)
		}
	}
}

// TestTwoFarmsReadOnce: six nodes of two farms read a whole image at once; the
// importer's farm has it, so the store sends next to nothing. A node that comes
// later and one that leaves change nothing about that.
func TestTwoFarmsReadOnce(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, farm := range []string{"a", "a", "a", "b", "b", "b"} {
		if _, err := l.Start(t.Context(), farm, store.URL); err != nil {
			t.Fatal(err)
		}
	}
	nodes := l.Nodes()
	path, sum := disk(t, l.Dir, imageSize())
	t.Log(run(t, nodes[0], "image", "import", "disk", path))
	var image api.Image
	if err := nodes[0].Get(t.Context(), "/api/images/disk", &image); err != nil {
		t.Fatal(err)
	}
	before := fromOrigin(t, l)
	readAll(t, nodes, "v", "disk", sum)
	table(t, l)
	after := fromOrigin(t, l)
	t.Logf("stored %d bytes, read from the store %d: %.3f", image.Stored, after-before, float64(after-before)/float64(image.Stored))
	if after-before > int64(image.Stored)*105/100 {
		t.Errorf("%d bytes were read from the store for %d stored", after-before, image.Stored)
	}
	seventh, err := l.Start(t.Context(), "b", store.URL)
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, []*lab.Node{seventh}, "w", "disk", sum)
	if s, err := seventh.Bytes(t.Context()); err != nil || s.Origin > 0 {
		t.Errorf("the seventh node read %d bytes of packs from the store (%v)", s.Origin, err)
	}
	table(t, l)
}
