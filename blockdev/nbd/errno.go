package nbd

import (
	"context"
	"errors"
	"strconv"

	"github.com/grangemesh/grange/origin/content"
)

// errno is an error as the wire says it.
type errno uint32

// The protocol's numbers, which are Linux's whatever this machine runs.
const (
	errnoNone     errno = 0
	errnoPerm     errno = 1
	errnoIO       errno = 5
	errnoInvalid  errno = 22
	errnoNoSpace  errno = 28
	errnoOverflow errno = 75
	errnoUnsup    errno = 95
	errnoShutdown errno = 108
)

// String returns the usual name; it is the label of the errors counter.
func (e errno) String() string {
	switch e {
	case errnoNone:
		return "none"
	case errnoPerm:
		return "EPERM"
	case errnoIO:
		return "EIO"
	case errnoInvalid:
		return "EINVAL"
	case errnoNoSpace:
		return "ENOSPC"
	case errnoOverflow:
		return "EOVERFLOW"
	case errnoUnsup:
		return "ENOTSUP"
	case errnoShutdown:
		return "ESHUTDOWN"
	}
	return strconv.Itoa(int(e))
}

// errnoOf maps the failure of a device to what its client is told. What has no
// number of its own is EIO: the guest's file system knows what to do then.
func errnoOf(err error) errno {
	switch {
	case err == nil:
		return errnoNone
	case errors.Is(err, content.ErrNoSpace):
		return errnoNoSpace
	case errors.Is(err, content.ErrReadOnly), errors.Is(err, content.ErrForbidden):
		return errnoPerm
	case errors.Is(err, content.ErrInvalid):
		return errnoInvalid
	case errors.Is(err, errors.ErrUnsupported):
		return errnoUnsup
	case errors.Is(err, content.ErrClosed), errors.Is(err, context.Canceled):
		return errnoShutdown
	}
	return errnoIO
}
