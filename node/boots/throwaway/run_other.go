//go:build !linux

package throwaway

import (
	"context"
	"errors"
	"fmt"
	"io"
)

func run(context.Context, []string, string, io.Writer) error {
	return fmt.Errorf("%w: machines are run on Linux only", errors.ErrUnsupported)
}
