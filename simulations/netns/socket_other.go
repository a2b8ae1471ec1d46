//go:build !linux

package netns

import (
	"context"
	"errors"
	"net"
)

// Listen is for Linux alone, as is New.
func (h *Host) Listen(context.Context, string, string) (net.Listener, error) {
	return nil, errors.ErrUnsupported
}

// Dial is for Linux alone, as is New.
func (h *Host) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

// Inside is for Linux alone, as is New.
func (h *Host) Inside(func() error) error { return errors.ErrUnsupported }
