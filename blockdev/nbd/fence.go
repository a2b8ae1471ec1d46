package nbd

import (
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
)

// A client that is gone may leave requests behind: in its socket, in our buffers, at a device that makes them wait.
// Another client, which knows that it is gone, writes to the same place, and must not find that overwritten later. So
// before a batch of requests is begun, each other connection to the export whose client has hung up by then is fenced:
// its changes that the device has already are waited for, the rest is never made. And a batch that was left behind by a
// client that is gone by the time when it is read is not begun either. (Over TCP an end is known once all that was sent
// before it has come.)

// errGone ends a connection whose client has hung up while others use the export.
var errGone = errors.New("the client has hung up, and others use the export")

// export is the connections that have one open.
type export struct {
	mu    sync.Mutex // guards changes of conns, and gone of each of them
	conns atomic.Pointer[[]*conn]
	edges sync.RWMutex // held for writing by changes of parts of blocks, else for reading
}

func (e *export) list() []*conn {
	if p := e.conns.Load(); p != nil {
		return *p
	}
	return nil
}

func (e *export) enter(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := append([]*conn{c}, e.list()...)
	e.conns.Store(&next)
}

func (e *export) leave(c *conn) (last bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(e.list()), func(other *conn) bool { return other == c })
	e.conns.Store(&next)
	return len(next) == 0
}

// fence is called when c has read requests and before it begins them. It returns errGone when the client of c is gone.
func (e *export) fence(c *conn) error {
	c.begun.Store(true) // before the looks, so that of two connections one sees the other
	others := e.list()
	if len(others) < 2 {
		return nil
	}
	if e.hungUp(c) {
		return errGone
	}
	for _, other := range others {
		if other == c || !other.begun.Load() && other.changes.idle() || !e.hungUp(other) {
			continue
		}
		done := other.changes.shut()
		other.cancel()
		select {
		case <-done:
		case <-c.ctx.Done():
			return errGone
		}
	}
	return nil
}

// hungUp reports whether nobody reads the replies of a connection any more. Where that
// can't be told without reading, false.
func (e *export) hungUp(c *conn) bool {
	if c.raw == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.gone = false
	if err := c.raw.Control(c.look); err != nil { // closed at this end
		return true
	}
	return c.gone
}

// half reports whether the end of what a client sends means that it is gone: over TCP nothing else tells. A client of a
// unix socket that only ends its own sending waits for replies.
func half(socket net.Conn) bool {
	_, tcp := socket.(*net.TCPConn)
	return tcp
}

// changes counts the changes of one connection that the device has been given and
// that have not returned, until it is shut.
type changes struct {
	n     atomic.Int64 // with changesShut once nothing is begun any more
	once  sync.Once
	ended chan struct{} // closed when it is shut and none is left
}

const changesShut = 1 << 62

// begin reports whether a change may be made; then end follows.
func (x *changes) begin() bool {
	if x.n.Add(1) < changesShut {
		return true
	}
	x.end()
	return false
}

func (x *changes) end() {
	if x.n.Add(-1) == changesShut {
		x.once.Do(func() { close(x.ended) })
	}
}

func (x *changes) idle() bool { return x.n.Load()&^changesShut == 0 }

// shut lets no change begin from now on, and returns a channel that is closed when the last one has returned.
func (x *changes) shut() <-chan struct{} {
	x.n.Or(changesShut)
	if x.idle() {
		x.once.Do(func() { close(x.ended) })
	}
	return x.ended
}
