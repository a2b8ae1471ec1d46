package nbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// SocketName is how a folder's socket is called.
const SocketName = "nbd.sock"

// SocketPathMax is the longest path of a unix socket: what sun_path of this system holds besides the final zero.
const SocketPathMax = len(syscall.RawSockaddrUnix{}.Path) - 1

// CheckSocketPath fails with content.ErrInvalid for a path at which no unix socket can be.
func CheckSocketPath(path string) error {
	if path == "" || len(path) > SocketPathMax {
		return fmt.Errorf("%w: a socket's path has 1 to %d bytes, and %q has %d", content.ErrInvalid, SocketPathMax, path, len(path))
	}
	return nil
}

// ListenConfig says how listeners are opened. The zero value is for sockets that are their user's alone.
type ListenConfig struct {
	// Mode is that of a unix socket; 0600 when zero.
	Mode fs.FileMode
	// Group is the number of the group that a unix socket belongs to; nil is the process's own.
	Group *int
	// Inherited are descriptors of sockets, by address, that a process before this one listened on and left open: who
	// has connected since waits there. Listen takes those that it is asked for out of it.
	Inherited map[string]*os.File
}

// Listen opens a listener as the zero ListenConfig does.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	return ListenConfig{}.Listen(ctx, address)
}

// Listen opens a listener: on "unix:PATH", in the place of the socket that a dead process left, or on the TCP address
// "HOST:PORT". A socket that another process serves is content.ErrConflict. The listener's method File returns a
// descriptor to leave to a next process.
//
// Beside a socket lies PATH.lock, which its server holds locked: the kernel lets go of it when the process ends,
// however it ends, so a live server and a stale socket cannot be mistaken for each other.
func (c ListenConfig) Listen(ctx context.Context, address string) (net.Listener, error) {
	var l net.Listener
	var err error
	path, unix := strings.CutPrefix(address, "unix:")
	switch {
	case unix:
		l, err = c.listenUnix(ctx, path)
	case c.Inherited[address] != nil:
		l, err = c.adopt(address)
	default:
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("nbd: listen on %s: %w", address, err)
	}
	return l, nil
}

// adopt listens on an inherited descriptor, of which net makes one of its own.
func (c ListenConfig) adopt(address string) (net.Listener, error) {
	f := c.Inherited[address]
	delete(c.Inherited, address)
	l, err := net.FileListener(f)
	return l, errors.Join(err, f.Close())
}

func (c ListenConfig) listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := CheckSocketPath(path); err != nil {
		return nil, err
	}
	lock, err := durable.Lock(path + ".lock")
	if err != nil {
		return nil, err
	}
	var l net.Listener
	if address := "unix:" + path; c.Inherited[address] != nil {
		l, err = c.adopt(address)
	} else {
		l, err = replaceSocket(ctx, path)
	}
	if err == nil {
		err = c.admit(path)
	}
	if err != nil {
		if l != nil {
			l.Close()
		}
		lock.Close()
		return nil, err
	}
	return &lockedListener{UnixListener: l.(*net.UnixListener), path: path, lock: lock}, nil
}

// admit lets those to a socket who may open it.
func (c ListenConfig) admit(path string) error {
	if c.Group != nil {
		if err := os.Chown(path, -1, *c.Group); err != nil {
			return err
		}
	}
	return os.Chmod(path, cmp.Or(c.Mode, 0o600))
}

// replaceSocket listens at path, whose lock the caller holds.
func replaceSocket(ctx context.Context, path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%w: there is something else, not a socket", content.ErrExists)
	default:
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return (&net.ListenConfig{Control: privateSocket}).Listen(ctx, "unix", path)
}

// lockedListener unlocks the socket's path once the socket is gone from it, or left to who has its File.
type lockedListener struct {
	*net.UnixListener
	path string
	lock io.Closer
	once sync.Once
	err  error
}

// File returns a copy of the descriptor. Close leaves the socket at its path then.
func (l *lockedListener) File() (*os.File, error) {
	l.path = ""
	return l.UnixListener.File()
}

func (l *lockedListener) Close() error {
	l.once.Do(func() {
		l.SetUnlinkOnClose(l.path != "")
		l.err = errors.Join(l.UnixListener.Close(), l.lock.Close())
	})
	return l.err
}

// URI returns what a client opens: nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME.
func URI(address net.Addr, name string) string {
	// Clients know %20 but not "+"; slashes stay readable.
	queryPath := strings.NewReplacer("+", "%20", "%2F", "/")
	u := url.URL{Scheme: "nbd", Host: address.String(), Path: "/" + name}
	if address.Network() == "unix" {
		u.Scheme, u.Host = "nbd+unix", ""
		u.RawQuery = "socket=" + queryPath.Replace(url.QueryEscape(address.String()))
	}
	return u.String()
}
