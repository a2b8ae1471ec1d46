//go:build !linux

package pagecache

import "os"

// Read fills p with what a regular file has at off. False means that the file ends
// before, or can't be read; p holds anything then. No system but Linux says whether
// it waits for the disk.
func Read(f *os.File, p []byte, off int64) bool {
	n, _ := f.ReadAt(p, off)
	return n == len(p)
}
