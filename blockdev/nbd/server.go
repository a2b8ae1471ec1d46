package nbd

import (
	"context"
	"errors"
	"net"

	"github.com/prometheus/client_golang/prometheus"
)

// Server serves Exports to NBD clients.
type Server struct {
	cfg Config
}

// New builds a Server; it serves nothing before Run.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Server{cfg: cfg}, nil
}

// Run serves until ctx is done, then closes the listeners, lets requests in
// flight finish for up to DrainTimeout, and returns once every device is
// released. It returns nil after an orderly stop. Call it once.
func (s *Server) Run(ctx context.Context) error { return errors.ErrUnsupported }

// Detach ends the connections to the export of that name: requests in flight
// finish and are answered, no more are read. It returns once the devices are
// released. When ctx ends first, it cancels what is in flight and says so. Take
// the name out of Exports before, or clients will open it anew.
func (s *Server) Detach(ctx context.Context, name string) error { return errors.ErrUnsupported }

// Collectors returns the server's metrics.
func (s *Server) Collectors() []prometheus.Collector { return nil }

// Listen opens a listener: on "unix:PATH", with mode 0600 and in the place of
// the socket that a dead process left, or on the TCP address "HOST:PORT". A
// socket that another process serves is content.ErrConflict.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	return nil, errors.ErrUnsupported
}

// URI returns what a client opens: nbd+unix:///NAME?socket=PATH or
// nbd://HOST:PORT/NAME.
func URI(address net.Addr, name string) string { return "" }
