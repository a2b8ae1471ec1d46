//go:build !linux

package volume

import "os"

func dataSync(f *os.File) error { return f.Sync() }

// writeVector writes parts one after the other to off of a file, and returns how many
// bytes are there.
func writeVector(f *os.File, parts [][]byte, off int64) (n int64, err error) {
	for _, p := range parts {
		m, err := f.WriteAt(p, off+n)
		if n += int64(m); err != nil {
			return n, err
		}
	}
	return n, nil
}
