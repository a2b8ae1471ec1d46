//go:build !linux

package mounts

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/grangemesh/grange/origin/content/tree"
)

func show(*tree.Tree, string, string, *slog.Logger) (end func(force bool) error, err error) {
	return nil, fmt.Errorf("%w: trees are mounted on Linux only", errors.ErrUnsupported)
}
