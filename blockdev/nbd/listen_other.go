//go:build !linux && !darwin

package nbd

import (
	"syscall"
)

func privateSocket(_, _ string, _ syscall.RawConn) error { return nil }
