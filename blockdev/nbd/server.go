package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/blockdev/meter"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
)

const (
	// cancelTimeout is how long a device may take to notice that its requests were cancelled.
	cancelTimeout = 5 * time.Second
	// acceptPause is the wait after a failed accept, most likely for want of
	// file descriptors, which closing connections bring back.
	acceptPause = 50 * time.Millisecond
	// complainEvery is how often failed accepts are told of.
	complainEvery = time.Minute
)

// Server serves Exports to NBD clients.
type Server struct {
	cfg     Config
	metrics metrics
	buffers scratch.Pool
	// complaint is of connections that can't be accepted.
	complaint rate.Sometimes

	mu      sync.Mutex
	conns   map[*conn]struct{} // guarded by mu
	exports map[any]*export    // guarded by mu: those that are open, by name
	stopped bool               // guarded by mu: no connection is added any more
}

// New builds a Server; it serves nothing before Run.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, metrics: newMetrics(), complaint: rate.Sometimes{Interval: complainEvery},
		conns: map[*conn]struct{}{}, exports: map[any]*export{},
	}, nil
}

// Collectors returns the server's metrics.
func (s *Server) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.metrics.Registry}
}

// Run serves until ctx is done, then closes the listeners, lets changes in flight finish for up to DrainTimeout, and
// returns once every device is released. Reads that wait for the device are not answered. It returns nil after an
// orderly stop. Call it once.
func (s *Server) Run(ctx context.Context) error {
	closeAll := func() {
		for _, l := range s.cfg.Listeners {
			l.Close()
		}
	}
	// Requests outlive ctx: they are cancelled when their time to drain is over.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	group, accepting := errgroup.WithContext(ctx)
	unhook := context.AfterFunc(accepting, closeAll)
	for _, l := range s.cfg.Listeners {
		group.Go(func() error { return s.accept(accepting, work, l) })
	}
	err := group.Wait()
	unhook()
	closeAll()
	return errors.Join(err, s.stop(context.WithoutCancel(ctx)))
}

// accept serves the connections of l until ctx is done; they work under work.
func (s *Server) accept(ctx, work context.Context, l net.Listener) error {
	for {
		socket, err := l.Accept()
		switch {
		case err == nil:
			s.serve(work, socket)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("nbd: accept on %s: %w", l.Addr(), err)
		default:
			s.complaint.Do(func() {
				s.cfg.Log.Warn("nbd: accept failed, and is tried again and again", "address", l.Addr().String(), "error", err)
			})
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
		}
	}
}

// serve starts a connection, or closes it if there are too many.
func (s *Server) serve(ctx context.Context, socket net.Conn) {
	c := newConn(ctx, s, socket)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || len(s.conns) >= s.cfg.ConnectionsMax {
		c.cancel()
		socket.Close()
		s.metrics.connectionEnded(endRefused)
		return
	}
	s.conns[c] = struct{}{}
	s.metrics.connections.Inc()
	go func() {
		how := c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.metrics.connections.Dec()
		s.metrics.connectionEnded(how)
		close(c.done)
	}()
}

func (s *Server) stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DrainTimeout)
	defer cancel()
	return s.end(ctx, func(*conn) bool { return true })
}

func (s *Server) enter(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := c.name.Load()
	e := s.exports[name]
	if e == nil {
		e = new(export)
		s.exports[name] = e
	}
	c.export = e
	e.enter(c)
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.export.leave(c) {
		delete(s.exports, c.name.Load())
	}
}

// Rename has those who have an export open have it by another name, which nobody has; nobody opens either meanwhile.
func (s *Server) Rename(old, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.name.CompareAndSwap(old, name)
	}
	if e := s.exports[old]; e != nil {
		s.exports[name] = e
		delete(s.exports, old)
	}
}

// Detach ends the connections to the export of that name: changes in flight finish and are answered, reads that wait
// are not, no more are read. It returns once the devices are released. When ctx ends first, it cancels what is in
// flight and says so. Take the name out of Exports before, or clients will open it anew.
func (s *Server) Detach(ctx context.Context, name string) error {
	err := s.end(ctx, func(c *conn) bool { return c.opened && c.name.Load() == name })
	if err != nil {
		return fmt.Errorf("detach %q: %w", name, err)
	}
	return nil
}

// end drains the connections that match, which is called under mu, and returns
// when they are gone. What is not by the end of ctx is cancelled.
func (s *Server) end(ctx context.Context, match func(*conn) bool) error {
	s.mu.Lock()
	var ending []*conn
	for c := range s.conns {
		if match(c) {
			c.drainLocked()
			ending = append(ending, c)
		}
	}
	s.mu.Unlock()
	late := await(ctx, ending)
	if len(late) == 0 {
		return nil
	}
	for _, c := range late {
		c.cancel()
		c.socket.Close()
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	if stuck := await(patience, late); len(stuck) > 0 {
		return fmt.Errorf("nbd: %w: %d connections are held by a device that does not return", content.ErrUnavailable, len(stuck))
	}
	return fmt.Errorf("nbd: %w: requests of %d connections were cancelled", context.Cause(ctx), len(late))
}

// await returns those of conns that are not done when ctx ends.
func await(ctx context.Context, conns []*conn) (late []*conn) {
	for _, c := range conns {
		select {
		case <-c.done:
		default:
			select {
			case <-c.done:
			case <-ctx.Done():
				late = append(late, c)
			}
		}
	}
	return late
}

type metrics struct {
	*meter.Meter
	connections prometheus.Gauge
	ended       *prometheus.CounterVec
}

func newMetrics() metrics {
	m := meter.New("nbd", "read", "write", "disconnect", "flush", "trim", "cache", "write_zeroes", "block_status")
	auto := promauto.With(m.Registry)
	return metrics{m,
		auto.NewGauge(prometheus.GaugeOpts{
			Namespace: "grange", Subsystem: "nbd", Name: "connections", Help: "Open connections.",
		}),
		auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "grange", Subsystem: "nbd", Name: "connections_total",
			Help: "Connections that ended, by how: ok, lost, garbage, timeout, refused.",
		}, []string{"end"}),
	}
}

func (m metrics) connectionEnded(how string) { m.ended.WithLabelValues(how).Inc() }
