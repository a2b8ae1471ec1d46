package csi

import (
	"context"
	"os"
	"testing"

	"github.com/grangemesh/grange/simulations/csi/built"
	"github.com/grangemesh/grange/simulations/vm"
)

func TestMain(m *testing.M) {
	os.Exit(vm.Main(m, vm.Config{MemoryMiB: 3072, Newest: true, Prepare: prepare}))
}

// prepare builds the command and the suite.
func prepare(ctx context.Context, dir string, c *vm.Config) (err error) {
	c.Files, err = built.Programs(ctx, dir)
	return err
}
