//go:build !linux

package foreign

import "syscall"

// fences has none: what can't be fenced is not started.
func fences() []*syscall.SysProcAttr { return nil }
