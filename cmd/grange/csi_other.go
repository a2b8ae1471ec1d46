//go:build !linux

package main

import (
	"errors"
	"fmt"
)

// csiCmd mounts disks, which only Linux has.
type csiCmd struct {
	Endpoint string `required:"" env:"CSI_ENDPOINT" help:"Where the driver is asked." placeholder:"unix:///PATH"`
}

func (c *csiCmd) Run() error {
	return fmt.Errorf("volumes as disks: %w on this system", errors.ErrUnsupported)
}
