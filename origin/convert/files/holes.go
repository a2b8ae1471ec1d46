// Package files lists trees of files, those of this host and those in tar files, with all that a file system knows of
// them; and finds the holes in files.
package files

import "github.com/grangemesh/grange/origin/content"

// Block is what holes consist of, in bytes: that of common file systems.
const Block = 4 << 10

// NotZero calls yield with the runs of blocks in p, which lies at off, that are not all zeros.
func NotZero(p []byte, off int64, yield func(p []byte, off int64) error) error {
	start := -1 // of the run
	for at, next := 0, 0; at < len(p); at = next {
		next = min(len(p), at+Block-int((off+int64(at))%Block))
		switch zero := content.IsZero(p[at:next]); {
		case !zero && start < 0:
			start = at
		case zero && start >= 0:
			if err := yield(p[start:at], off+int64(start)); err != nil {
				return err
			}
			start = -1
		}
	}
	if start < 0 {
		return nil
	}
	return yield(p[start:], off+int64(start))
}
