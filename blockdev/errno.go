package blockdev

import (
	"context"
	"errors"
	"strconv"

	"github.com/grangemesh/grange/origin/content"
)

// Errno is an error as a door tells it to its clients.
type Errno uint32

// Linux's numbers, which NBD has made its own, whatever this machine runs.
const (
	OK        Errno = 0
	EPERM     Errno = 1
	EIO       Errno = 5
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// String returns the usual name; it is the label in metrics.
func (e Errno) String() string {
	names := [...]string{OK: "none", EPERM: "EPERM", EIO: "EIO", EINVAL: "EINVAL", ENOSPC: "ENOSPC",
		EOVERFLOW: "EOVERFLOW", ENOTSUP: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN"}
	if int(e) < len(names) && names[e] != "" {
		return names[e]
	}
	return strconv.Itoa(int(e))
}

// ErrnoOf maps the failure of a Device to what its client is told. What has no
// number of its own is EIO: a file system knows what to do then.
func ErrnoOf(err error) Errno {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, content.ErrNoSpace):
		return ENOSPC
	case errors.Is(err, content.ErrReadOnly), errors.Is(err, content.ErrForbidden):
		return EPERM
	case errors.Is(err, content.ErrInvalid):
		return EINVAL
	case errors.Is(err, errors.ErrUnsupported):
		return ENOTSUP
	case errors.Is(err, content.ErrClosed), errors.Is(err, context.Canceled):
		return ESHUTDOWN
	}
	return EIO
}
