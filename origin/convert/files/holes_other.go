//go:build !linux

package files

import "os"

// NextData takes the whole file for data: zeros in it are found by reading.
func NextData(_ *os.File, off, size int64) (start, end int64, err error) { return off, size, nil }
