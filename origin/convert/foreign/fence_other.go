//go:build !linux

package foreign

import (
	"errors"
	"os"
	"syscall"
)

// fences has none: what can't be fenced is not started.
func fences() []*syscall.SysProcAttr { return nil }

func socketpair() (ours, theirs *os.File, err error) { return nil, nil, errors.ErrUnsupported }
