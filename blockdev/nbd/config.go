package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

// The defaults of Config, and the bounds of the protocol.
const (
	// connectionsMax: 200 devices opened by 4 connections each, and room.
	connectionsMax = 1024
	// requestsMax is the deepest queue that common clients build: the kernel's is 128, fio's engine stops at 256.
	requestsMax = 256
	// bytesMax lets two requests of the largest size overlap.
	bytesMax = 2*payloadMax + 1<<20
	// handshakeTimeout is ample for a client on the far side of the world and
	// short for one that only holds the door open.
	handshakeTimeout = 10 * time.Second
	// drainTimeout is what a stop waits for changes in flight: longer than a sync of a
	// busy disk, shorter than an init system's patience.
	drainTimeout = 10 * time.Second

	// payloadMax bounds the data of one read or write: the size that the protocol tells clients to assume.
	payloadMax = 32 << 20
	// nameMax bounds each string of the handshake: the protocol's own limit.
	nameMax = 4096
)

// Exports are the devices that clients may open, by name. It is safe for concurrent use.
type Exports interface {
	// Lookup opens the device of that name, or fails with content.ErrNotFound. Each release is called once, after the
	// last call to the device. The empty name is what a client asks for that names none; it is up to Exports whether
	// one device answers to it.
	Lookup(ctx context.Context, name string) (device blockdev.Device, release func(), err error)
	// List returns the names that a client may be told.
	List(ctx context.Context) ([]string, error)
}

// Config is what a Server needs. Exports and Listeners must be set; other zero values mean their defaults.
type Config struct {
	Exports Exports
	// Listeners are served and closed by Run.
	Listeners []net.Listener
	// TLS is what clients have to use that come over TCP; see LoadTLS. Nil: nobody does.
	TLS *tls.Config

	// ConnectionsMax bounds open connections; one more is closed at once. 1024.
	ConnectionsMax int
	// RequestsMax bounds the requests of one connection that wait for the
	// device; the next one stays in the socket. 256.
	RequestsMax int
	// BytesMax bounds the memory of one connection's requests and of replies
	// that its client has not taken. 65 MiB; at least 33 MiB.
	BytesMax int64
	// HandshakeTimeout is the time from connecting to the first request. After
	// it a connection may be idle for ever. 10 s.
	HandshakeTimeout time.Duration
	// DrainTimeout is how long changes in flight may take to finish once the server
	// stops; then they are cancelled. 10 s.
	DrainTimeout time.Duration

	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	c.ConnectionsMax = cmp.Or(c.ConnectionsMax, connectionsMax)
	c.RequestsMax = cmp.Or(c.RequestsMax, requestsMax)
	c.BytesMax = cmp.Or(c.BytesMax, bytesMax)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, handshakeTimeout)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, drainTimeout)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c
}

func (c Config) validate() error {
	switch {
	case c.Exports == nil:
		return fmt.Errorf("nbd: %w: no exports", content.ErrInvalid)
	case len(c.Listeners) == 0:
		return fmt.Errorf("nbd: %w: no listener", content.ErrInvalid)
	}
	return nil
}
