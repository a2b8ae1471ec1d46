//go:build !linux

package journal

import "os"

// DataSync makes a file durable.
func DataSync(f *os.File) error { return f.Sync() }

// sole is not known: no file is used again.
func sole(string) bool { return false }

func prefetch(*os.File) {}

// WriteVector writes parts one after the other to off of a file, and returns how many
// bytes are there.
func WriteVector(f *os.File, parts [][]byte, off int64) (n int64, err error) {
	for _, p := range parts {
		m, err := f.WriteAt(p, off+n)
		if n += int64(m); err != nil {
			return n, err
		}
	}
	return n, nil
}
