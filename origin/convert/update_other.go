//go:build !linux

package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
)

func (o Options) update(context.Context, string, *os.File) error {
	return fmt.Errorf("%w: a new version of a directory can be imported on Linux only", errors.ErrUnsupported)
}
