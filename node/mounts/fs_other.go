//go:build !linux

package mounts

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/grangemesh/grange/origin/content/tree"
)

func show(*tree.Tree, string, string, *slog.Logger) (end func(force bool) error, gone <-chan struct{}, err error) {
	return nil, nil, fmt.Errorf("%w: trees are mounted on Linux only", errors.ErrUnsupported)
}
