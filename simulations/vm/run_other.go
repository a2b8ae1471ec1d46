//go:build !linux

package vm

import (
	"context"
	"os"
)

// Run fails: the pieces of a guest are Debian's.
func Run(_ context.Context, c Config) (int, error) { return 0, c.validate() }

// Shell fails, as Run does.
func Shell(_ context.Context, c Config, _, _ *os.File) error { return c.validate() }
