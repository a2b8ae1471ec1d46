//go:build !linux

package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/grangemesh/grange/origin/content/tree"
)

// inUse can't tell here.
func inUse(*os.File, fs.FileInfo) error { return nil }

func sameMoment(a, b fs.FileInfo) bool {
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func (o Options) tree(context.Context) (Disk, error) {
	return nil, fmt.Errorf("%w: a directory or tar file is made into a disk on Linux only; import a disk file", errors.ErrUnsupported)
}

// Files is what becomes a tree on Linux.
type Files struct{}

// OpenFiles fails with errors.ErrUnsupported.
func OpenFiles(context.Context, Options) (*Files, error) {
	return nil, fmt.Errorf("%w: a directory or tar file is made into a tree on Linux only", errors.ErrUnsupported)
}

// Close does nothing.
func (*Files) Close() error { return nil }

// Plant fails with errors.ErrUnsupported.
func (*Files) Plant(context.Context, *tree.Writer) (tree.Sums, error) {
	return tree.Sums{}, errors.ErrUnsupported
}

// Learn fails with errors.ErrUnsupported.
func (*Files) Learn(context.Context, *tree.Writer) error { return errors.ErrUnsupported }

// Harvest fails with errors.ErrUnsupported.
func Harvest(context.Context, *tree.Tree, string, func(string)) error {
	return fmt.Errorf("%w: a tree is written out on Linux only", errors.ErrUnsupported)
}

// HarvestTop fails with errors.ErrUnsupported.
func HarvestTop(context.Context, *tree.Tree, string) error { return errors.ErrUnsupported }

// StampOf knows none.
func StampOf(uint64, int64, int64) []byte { return nil }
