//go:build !linux

package process

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Process is one that runs, on Linux.
type Process struct{ ID }

func unable() error { return fmt.Errorf("%w: workloads are run on Linux only", errors.ErrUnsupported) }

// Start fails with errors.ErrUnsupported, as all else here does.
func Start(Config) (*Process, error) { return nil, unable() }

// Adopt is for Linux.
func Adopt(ID, string) (*Process, error) { return nil, unable() }

// Run is for Linux.
func Run(context.Context, Config) (int, error) { return 0, unable() }

// Give is for Linux.
func Give(string, string) error { return unable() }

// Sweep is for Linux.
func Sweep(string, string) error { return unable() }

// Wait is for Linux.
func (*Process) Wait(context.Context) error { return unable() }

// Stop is for Linux.
func (*Process) Stop(context.Context, time.Duration) error { return unable() }

// Close is for Linux.
func (*Process) Close() error { return nil }

// HasEnded is true.
func (*Process) HasEnded() bool { return true }
