//go:build !linux

package vm

import (
	"context"
	"io"
	"os"
)

// Prepare fails, as Run does.
func Prepare(context.Context, io.Writer) error { return Config{}.validate() }

// Run fails: the pieces of a guest are Debian's.
func Run(_ context.Context, c Config) (int, error) { return 0, c.validate() }

// Shell fails, as Run does.
func Shell(_ context.Context, c Config, _, _ *os.File) error { return c.validate() }
