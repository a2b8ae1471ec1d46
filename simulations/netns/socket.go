package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Listen opens a listener on the host, for a server in this process.
func (h *Host) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	err = h.Inside(func() error {
		var c net.ListenConfig
		l, err = c.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// Dial connects from the host with an address, which holds no name.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.Inside(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Inside calls f on a thread that is in the host's network for as long; a socket
// stays in the network that it was made in. Goroutines that f starts are elsewhere.
// The thread comes back and lives on: processes that it has started may die with it.
func (h *Host) Inside(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	err = enter(filepath.Join("/run/netns", h.namespace))
	if err == nil {
		err = f()
	}
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave the network of %s: %w", h.addr, back)) // nobody else may run on this thread
	}
	runtime.UnlockOSThread()
	return err
}

func enter(namespace string) error {
	ns, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network %s: %w", namespace, err)
	}
	return nil
}
