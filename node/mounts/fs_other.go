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

// Overlay fails with errors.ErrUnsupported.
func Overlay(_, _, _, _ string) error {
	return fmt.Errorf("%w: a tree is written over on Linux only", errors.ErrUnsupported)
}

// IsOverlaid is false.
func IsOverlaid(string) bool { return false }

// IsServed is false.
func IsServed(string) bool { return false }

// Detach does nothing.
func Detach(string) error { return nil }
