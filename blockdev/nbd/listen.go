package nbd

import (
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

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// unixPathMax is the longest path of a unix socket on the systems we run on:
// 104 bytes with the final zero on the tightest.
const unixPathMax = 103

// Listen opens a listener: on "unix:PATH", with mode 0600 and in the place of
// the socket that a dead process left, or on the TCP address "HOST:PORT". A
// socket that another process serves is content.ErrConflict.
//
// Beside a socket lies PATH.lock, which its server holds locked: the kernel lets
// go of it when the process ends, however it ends, so a live server and a stale
// socket cannot be mistaken for each other.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var l net.Listener
	var err error
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		l, err = listenUnix(ctx, path)
	} else {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("nbd: listen on %s: %w", address, err)
	}
	return l, nil
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if path == "" || len(path) > unixPathMax {
		return nil, fmt.Errorf("%w: a socket's path has 1 to %d bytes, not %d", content.ErrInvalid, unixPathMax, len(path))
	}
	lock, err := durable.Lock(path + ".lock")
	if err != nil {
		return nil, err
	}
	l, err := replaceSocket(ctx, path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &lockedListener{Listener: l, lock: lock}, nil
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
	config := net.ListenConfig{Control: privateSocket}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// lockedListener unlocks the socket's path once the socket is gone from it.
type lockedListener struct {
	net.Listener
	lock io.Closer
	once sync.Once
	err  error
}

func (l *lockedListener) Close() error {
	l.once.Do(func() { l.err = errors.Join(l.Listener.Close(), l.lock.Close()) })
	return l.err
}

// URI returns what a client opens: nbd+unix:///NAME?socket=PATH or
// nbd://HOST:PORT/NAME.
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
