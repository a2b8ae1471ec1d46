package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/meter"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
)

// How a connection ended: labels of a metric.
const (
	endOK      = "ok"      // the client took its leave, or the server did
	endLost    = "lost"    // the client vanished
	endGarbage = "garbage" // what came was not the protocol
	endTimeout = "timeout" // the handshake took too long
	endRefused = "refused" // too many connections, or no such export
)

// socketBuffer is asked for on unix sockets, so that two long replies fit and the second is read while the client takes
// the first; the kernel may grant less. TCP finds its own size.
const socketBuffer = 1 << 20

// errLeave ends a connection in good order: what is in flight is answered first.
var errLeave = errors.New("disconnect")

// conn is one connection. Its fields belong to the goroutine of serve where they do not say otherwise.
type conn struct {
	server *Server
	socket net.Conn
	raw    syscall.RawConn // its descriptor, or nil
	stream net.Conn        // what is said over the socket: TLS, or the socket itself
	in     input
	out    output // safe for concurrent use
	budget *budget

	// ctx is what the device's calls run under; it ends when nobody will read the answers.
	ctx    context.Context
	cancel context.CancelFunc
	// reading is what reads run under. It ends sooner, when the connection drains: a read may wait for its bytes for
	// minutes, and a client asks again for what it got no answer to.
	reading context.Context
	cut     context.CancelFunc
	done    chan struct{} // closed when serve has returned

	// Guarded by server.mu, but for a look at the name.
	name     atomic.Value // string: of the export, once opened is true
	opened   bool
	draining bool

	export     *export // once it is opened
	device     *device
	begun      atomic.Bool // requests are at hand that were read and not all begun
	changes    changes
	gone       bool             // guarded by export.mu: what look found
	look       func(fd uintptr) // c.lookNow, bound once
	structured bool             // replies
	lead       int              // bytes at the beginning of each buffer that are not sent
	contexts   []metaContext    // what a block status tells of; none: the client may not ask for it

	together together
	replies  *[]byte // gathered, to be sent with the next flush; may be nil
	tally    meter.Tally
	idle     chan *task // tasks to use again
	tasks    int        // how many were made
	working  sync.WaitGroup
	loud     rate.Sometimes // guards the log against a device that fails often
}

type device struct {
	blockdev.Device
	release func()
}

func newConn(ctx context.Context, s *Server, socket net.Conn) *conn {
	c := &conn{
		server: s, socket: socket, stream: socket, raw: rawOf(socket),
		budget: &budget{semaphore.NewWeighted(s.cfg.BytesMax), &s.buffers},
		done:   make(chan struct{}),
		idle:   make(chan *task, s.cfg.RequestsMax),
		loud:   rate.Sometimes{First: 3, Interval: time.Second},
	}
	c.changes.ended = make(chan struct{})
	c.look = c.lookNow
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.reading, c.cut = context.WithCancel(c.ctx)
	if unix, ok := socket.(*net.UnixConn); ok {
		unix.SetWriteBuffer(socketBuffer)
	}
	c.in.open(socket, c.raw, &s.buffers)
	c.out.open(socket, c.raw, c.budget)
	return c
}

func rawOf(socket net.Conn) syscall.RawConn {
	sc, ok := socket.(syscall.Conn)
	if !ok || !nonblocking {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// serve is the life of the connection; it says how that ended.
func (c *conn) serve() (how string) {
	err := c.handshake()
	opened := err == nil
	if opened {
		err = c.transmit()
	}
	if !errors.Is(err, errLeave) {
		c.cancel()
		c.socket.Close()
	}
	c.flush()
	c.working.Wait()
	// The last replies have their time, even if the client stopped reading.
	c.socket.SetWriteDeadline(time.Now().Add(c.server.cfg.DrainTimeout))
	c.out.wait()
	c.cancel()
	c.stream.Close()
	c.in.close()
	if c.device != nil {
		c.server.leave(c)
		c.device.release()
	}
	how = ending(err, opened)
	c.server.cfg.Log.Debug("nbd: connection ended", "client", c.client(), "export", c.name.Load(), "how", how, "reason", err)
	return how
}

func ending(err error, opened bool) string {
	switch {
	case errors.Is(err, errLeave):
		return endOK
	case errors.Is(err, content.ErrInvalid):
		return endGarbage
	case errors.Is(err, content.ErrNotFound):
		return endRefused
	case !opened && errors.Is(err, os.ErrDeadlineExceeded):
		return endTimeout
	}
	return endLost
}

func (c *conn) client() string { return c.socket.RemoteAddr().String() }

// drainLocked stops reading requests and cuts reads that wait, under server.mu; serve does the rest.
func (c *conn) drainLocked() {
	c.draining = true
	c.cut()
	c.socket.SetReadDeadline(time.Unix(1, 0))
}

// leaving turns the deadline that drainLocked set into errLeave.
func (c *conn) leaving(err error) error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.draining && errors.Is(err, os.ErrDeadlineExceeded) {
		return errLeave
	}
	return err
}

// patience sets the deadline of what comes, zero for none, unless the connection is draining.
func (c *conn) patience(until time.Time) error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.draining {
		return errLeave
	}
	return c.socket.SetDeadline(until)
}

// open opens the export of that name for good. The name is known to Detach
// before the lookup: whatever the lookup finds is drained.
func (c *conn) open(name string) error {
	c.server.mu.Lock()
	c.name.Store(name)
	c.opened = true
	draining := c.draining
	c.server.mu.Unlock()
	if draining {
		return errLeave
	}
	d, err := c.lookup(name)
	if err != nil {
		c.server.mu.Lock()
		c.opened = false
		c.server.mu.Unlock()
		return err
	}
	c.device = d
	c.server.enter(c)
	return nil
}

// lookup finds a device; its release is the caller's.
func (c *conn) lookup(name string) (*device, error) {
	dev, release, err := c.server.cfg.Exports.Lookup(c.reading, name)
	if err != nil {
		return nil, fmt.Errorf("look up export %.140q: %w", name, err)
	}
	g := dev.Geometry()
	if g.BlockSize < content.SectorSize || g.BlockSize&(g.BlockSize-1) != 0 || g.BlockSize > blockSizeMax || g.Size < 0 || g.Size%int64(g.BlockSize) != 0 {
		release()
		return nil, fmt.Errorf("export %.140q: %w: %d bytes in blocks of %d", name, content.ErrInvalid, g.Size, g.BlockSize)
	}
	return &device{dev, release}, nil
}

// blockSizeMax is the largest block that the protocol lets a server insist on.
const blockSizeMax = 64 << 10

// transmit answers requests until the connection ends, and says why it did.
func (c *conn) transmit() error {
	c.lead = dataAt - c.readHead()
	c.out.lead = c.lead
	for {
		if err := c.export.fence(c); err != nil {
			return err
		}
		for c.in.buffered() >= requestSize {
			req, err := parseRequest(c.in.next(requestSize))
			if err != nil {
				return err
			}
			if err := c.dispatch(req); err != nil {
				return c.leaving(err)
			}
			if c.replies != nil && len(*c.replies) >= gatherMax {
				c.flush()
			}
		}
		c.writeTogether()
		c.flush()
		if c.in.buffered() == 0 {
			c.begun.Store(false)
		}
		c.in.lingers = len(c.idle) == c.tasks
		if err := c.in.fill(); err != nil {
			return c.leaving(err)
		}
	}
}

func (c *conn) flush() {
	c.server.metrics.Publish(&c.tally)
	b := c.replies
	if b == nil {
		return
	}
	c.replies = nil
	if len(*b) == c.lead {
		c.budget.release(b)
		return
	}
	c.out.send(b)
}

// room returns the gathering buffer with room for n more bytes, n at most batchSize and a head.
func (c *conn) room(n int) *[]byte {
	if b := c.replies; b != nil && cap(*b)-len(*b) >= n {
		return b
	}
	c.flush()
	c.replies = c.take(batchSize)
	return c.replies
}

// take returns an empty buffer for n bytes with their head, charged to the budget. Where
// that must wait, what is gathered goes first: it is part of what is waited for.
func (c *conn) take(n int) *[]byte {
	b := c.server.buffers.Get(dataAt + n)
	if size := int64(cap(*b)); !c.budget.TryAcquire(size) {
		c.flush()
		_ = c.budget.Acquire(context.Background(), size) // others that hold some do not wait for this
	}
	*b = (*b)[:c.lead]
	return b
}

const (
	// dataAt is where the data of a request lies in a buffer of its own, and the first in those that are shared: at the
	// beginning of a line of the processor's cache. Some processors take three times as long for a copy from a page to
	// a place a few bytes farther than that is in its page, which a head in front of it makes of it.
	dataAt = 64
	// batchSize is the size of the buffers that requests are read into and replies are gathered in. Larger ones fall
	// out of the processor's nearer cache and gain nothing.
	batchSize = 256 << 10
	// gatherMax is how much is gathered before it is sent though more requests are at hand: so the client works on the
	// first replies of a batch while the server works on the last. Four replies of 4 KiB are worth a write.
	gatherMax = 16 << 10
)

// budget bounds the bytes that one connection holds in buffers. Only its reader acquires.
type budget struct {
	*semaphore.Weighted
	pool *scratch.Pool // of all connections
}

func (b *budget) release(p *[]byte) {
	n := int64(cap(*p))
	b.pool.Put(p)
	b.Release(n)
}
