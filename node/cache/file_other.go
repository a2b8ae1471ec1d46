//go:build !linux

package cache

import (
	"errors"
	"os"
)

func allocate(f *os.File, size int64) error { return f.Truncate(size) }

func punchHole(*os.File, int64, int64) error { return errors.ErrUnsupported }
