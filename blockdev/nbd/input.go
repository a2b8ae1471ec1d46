package nbd

import (
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/grangemesh/grange/origin/content/scratch"
)

// input reads from a connection in large batches. It holds a buffer only while bytes of it are unread, so an idle
// connection holds none. One goroutine uses it.
type input struct {
	conn net.Conn
	raw  syscall.RawConn // nil: no file descriptor that tells when it would block
	pool *scratch.Pool

	buf  *[]byte // unread are (*buf)[r:w]; nil when r == w == 0
	r, w int

	// lingers says that nothing is in flight: the next bytes are waited for a moment on the
	// thread, before the goroutine sleeps.
	lingers bool

	readable func(fd uintptr) bool // in.tryRead, bound once
	err      error                 // of the last tryRead
}

func (in *input) open(conn net.Conn, raw syscall.RawConn, pool *scratch.Pool) {
	in.conn, in.raw, in.pool = conn, raw, pool
	in.readable = in.tryRead
}

func (in *input) buffered() int { return in.w - in.r }

// next returns the next n bytes of those at hand. They stay valid until fill.
func (in *input) next(n int) []byte {
	p := (*in.buf)[in.r : in.r+n]
	in.r += n
	return p
}

// fill waits for at least one more byte. What is unread moves to the front.
func (in *input) fill() error {
	if in.buf != nil {
		in.w = inputAt + copy((*in.buf)[inputAt:], (*in.buf)[in.r:in.w])
		in.r = inputAt
	}
	if in.raw != nil {
		if err := in.raw.Read(in.readable); err != nil {
			return err
		}
		return in.err
	}
	in.hold()
	n, err := in.conn.Read((*in.buf)[in.w:])
	in.w += n
	if n > 0 {
		return nil
	}
	return err
}

// inputAt is where requests begin that are read, so that the data of a first write is at dataAt.
const inputAt = dataAt - requestSize

func (in *input) hold() {
	if in.buf == nil {
		in.buf = in.pool.Get(dataAt + batchSize + 3*requestSize) // one read has a longest write that is tried inline, or up to four that take as much
		in.r, in.w = inputAt, inputAt
	}
}

func (in *input) drop() {
	if in.buf != nil && in.r == in.w {
		in.pool.Put(in.buf)
		in.buf, in.r, in.w = nil, 0, 0
	}
}

// need returns the next n bytes, waiting for them; n is at most batchSize.
func (in *input) need(n int) ([]byte, error) {
	for in.buffered() < n {
		if err := in.fill(); err != nil {
			return nil, err
		}
	}
	if n == 0 {
		return nil, nil
	}
	return in.next(n), nil
}

func (in *input) full(p []byte) error {
	n := 0
	if in.buffered() > 0 {
		n = copy(p, (*in.buf)[in.r:in.w])
		in.r += n
	}
	if _, err := io.ReadFull(in.conn, p[n:]); err != nil {
		return fmt.Errorf("read %d bytes of data: %w", len(p), err)
	}
	return nil
}

func (in *input) skip(n int64) error {
	for n > 0 {
		if in.buffered() == 0 {
			if err := in.fill(); err != nil {
				return err
			}
		}
		k := int(min(n, int64(in.buffered())))
		in.r += k
		n -= int64(k)
	}
	return nil
}

func (in *input) close() {
	in.r = in.w
	in.drop()
}
