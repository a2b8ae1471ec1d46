package disks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/vm"
)

func TestMain(m *testing.M) {
	os.Exit(vm.Main(m, vm.Config{MemoryMiB: 3072, Prepare: prepare}))
}

// prepare builds the command, and a mesh with a Debian image that a node in the
// guest goes on with: its data and its origin, on a disk.
func prepare(ctx context.Context, dir string, c *vm.Config) error {
	command := filepath.Join(dir, "grange")
	build := exec.CommandContext(ctx, "go", "build", "-o", command, "github.com/grangemesh/grange/cmd/grange")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the command: %w: %s", err, out)
	}
	c.Files = map[string]string{"grange": command}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	image, err := debian.Build(ctx, filepath.Join(cache, "grange", "debian"), os.Stderr)
	if err != nil {
		return err
	}
	mesh := filepath.Join(dir, "mesh")
	if err := publish(ctx, command, mesh, image.Disk); err != nil {
		return err
	}
	disk := filepath.Join(dir, "mesh.img")
	const size = "512m" // of an image that takes about 120 MiB
	mkfs := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", mesh, disk, size)
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	c.Disks = []string{disk}
	return nil
}

// publish founds a mesh in dir and imports an image; the cache does not go along.
func publish(ctx context.Context, command, dir, image string) (err error) {
	n, err := start(ctx, command, dir)
	if err != nil {
		return err
	}
	out, err := n.run(ctx, "image", "import", "debian", image)
	if err != nil {
		return errors.Join(fmt.Errorf("%w: %s", err, out), n.stop())
	}
	return errors.Join(n.stop(), os.RemoveAll(filepath.Join(dir, "data", "cache")))
}
