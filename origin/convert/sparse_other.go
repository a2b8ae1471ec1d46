//go:build !linux

package convert

import "os"

// nextData takes the whole file for data: zeros in it are found by reading.
func nextData(_ *os.File, off, size int64) (start, end int64, err error) { return off, size, nil }
