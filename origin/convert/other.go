//go:build !linux

package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// inUse can't tell here.
func inUse(*os.File, fs.FileInfo) error { return nil }

func sameMoment(a, b fs.FileInfo) bool {
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func (o Options) tree(context.Context) (Disk, error) {
	return nil, fmt.Errorf("%w: a directory or tar file is made into a disk on Linux only; import a disk file", errors.ErrUnsupported)
}
