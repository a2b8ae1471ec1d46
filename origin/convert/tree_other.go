//go:build !linux

package convert

import (
	"context"
	"errors"
	"fmt"
)

func (o Options) tree(context.Context) (Disk, error) {
	return nil, fmt.Errorf("%w: a directory or tar file is made into a disk on Linux only; import a disk file", errors.ErrUnsupported)
}
