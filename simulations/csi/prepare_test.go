package csi

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/simulations/vm"
)

// sanity is the suite that drivers are measured by.
const sanity = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.4.0"

func TestMain(m *testing.M) {
	os.Exit(vm.Main(m, vm.Config{MemoryMiB: 3072, Newest: true, Prepare: prepare}))
}

// prepare builds the command and the suite.
func prepare(ctx context.Context, dir string, c *vm.Config) error {
	c.Files = map[string]string{}
	for name, args := range map[string][]string{
		"grange": {"build", "-ldflags=-s -w", "-o", filepath.Join(dir, "grange"), "github.com/grangemesh/grange/cmd/grange"}, "csi-sanity": {"install", "-ldflags=-s -w", sanity},
	} {
		build := exec.CommandContext(ctx, "go", args...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir)
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w: %s", args[0], err, out)
		}
		c.Files[name] = filepath.Join(dir, name)
	}
	return nil
}
