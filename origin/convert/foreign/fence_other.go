//go:build !linux

package foreign

import (
	"errors"
	"os"
	"os/exec"
)

// fences has none: what can't be fenced is not started.
func fences() []fence { return nil }

func restricted(*exec.Cmd) error { return errors.ErrUnsupported }

func socketpair() (ours, theirs *os.File, err error) { return nil, nil, errors.ErrUnsupported }
