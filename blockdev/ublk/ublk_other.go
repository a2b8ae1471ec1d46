//go:build !linux

package ublk

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/blockdev"
)

var errNotLinux = fmt.Errorf("ublk: %w: it is a driver of Linux", errors.ErrUnsupported)

// Server is never made here.
type Server struct{}

// Disk is never made here.
type Disk struct{}

func Probe() error                                 { return errNotLinux }
func New(Config) (*Server, error)                  { return nil, errNotLinux }
func (*Server) Run(context.Context) error          { return errNotLinux }
func (*Server) Collectors() []prometheus.Collector { return nil }
func (*Disk) Path() string                         { return "" }
func (*Disk) Number() int                          { return -1 }
func (*Disk) Stop(context.Context, bool) error     { return errNotLinux }
func (*Disk) Grow(context.Context) error           { return errNotLinux }

func (*Server) Remove(context.Context, int, uint32, bool) error { return errNotLinux }

func (*Server) Add(context.Context, int, uint32, blockdev.Device) (*Disk, error) {
	return nil, errNotLinux
}

func (*Server) Sweep(context.Context, func(int, uint32) bool) ([]int, error) {
	return nil, errNotLinux
}
