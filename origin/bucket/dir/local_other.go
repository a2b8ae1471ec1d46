//go:build !linux

package dir

import (
	"io/fs"
	"os"
	"time"
)

// changed is not known.
func changed(fs.FileInfo) (time.Time, bool) { return time.Time{}, false }

// isLocal is not known: reads are as they would be of a network mount.
func isLocal(*os.File) bool { return false }
