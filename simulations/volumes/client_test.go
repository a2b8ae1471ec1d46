package volumes

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"syscall"
	"time"
)

// patience bounds one answer: a flush may wait until an origin is back, and all until a node
// is.
const patience = 3 * time.Minute

// client is one connection to a volume over NBD, with one request at a time.
type client struct {
	conn   net.Conn
	size   int64
	cookie uint64
}

// The commands of NBD that are used here.
const (
	nbdRead, nbdWrite, nbdDisconnect, nbdFlush, nbdTrim, nbdWriteZeroes = 0, 1, 2, 3, 4, 6
)

// dial opens a device as the command line names it: nbd+unix:///NAME?socket=PATH.
func dial(device string) (*client, error) {
	u, err := url.Parse(device)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("unix", u.Query().Get("socket"), patience)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn}
	if err := c.handshake(u.Path[1:]); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	return c, nil
}

// handshake opens an export without structured replies.
func (c *client) handshake(name string) error {
	c.conn.SetDeadline(time.Now().Add(patience))
	var hello [18]byte
	if _, err := io.ReadFull(c.conn, hello[:]); err != nil {
		return err
	}
	b := []byte{0, 0, 0, 3} // fixed newstyle, no padding
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, 7) // GO
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(name)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(append(b, name...), 0, 0)
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	for {
		var head [20]byte
		if _, err := io.ReadFull(c.conn, head[:]); err != nil {
			return err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[16:]))
		if _, err := io.ReadFull(c.conn, body); err != nil {
			return err
		}
		switch kind := binary.BigEndian.Uint32(head[12:]); {
		case kind == 1:
			return nil
		case kind != 3:
			return fmt.Errorf("refused with %#x: %s", kind, body)
		case len(body) >= 10 && body[0]|body[1] == 0:
			c.size = int64(binary.BigEndian.Uint64(body[2:]))
		}
	}
}

// ask sends a request and waits for its answer; an error of the volume is a syscall.Errno.
func (c *client) ask(command uint16, p []byte, off int64, n int) error {
	c.conn.SetDeadline(time.Now().Add(patience))
	c.cookie++
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, c.cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	if command == nbdWrite {
		b = append(b, p...)
	}
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	if command == nbdDisconnect {
		return nil
	}
	var reply [16]byte
	if _, err := io.ReadFull(c.conn, reply[:]); err != nil {
		return err
	}
	switch code := binary.BigEndian.Uint32(reply[4:]); {
	case binary.BigEndian.Uint32(reply[:]) != 0x67446698 || binary.BigEndian.Uint64(reply[8:]) != c.cookie:
		return fmt.Errorf("an answer to something else: %x", reply)
	case code != 0:
		return syscall.Errno(code)
	}
	if command == nbdRead {
		_, err := io.ReadFull(c.conn, p)
		return err
	}
	return nil
}

func (c *client) write(p []byte, off int64) error { return c.ask(nbdWrite, p, off, len(p)) }
func (c *client) read(p []byte, off int64) error  { return c.ask(nbdRead, p, off, len(p)) }
func (c *client) flush() error                    { return c.ask(nbdFlush, nil, 0, 0) }

// close ends the connection as a client does that has done its work.
func (c *client) close() error {
	err := c.ask(nbdDisconnect, nil, 0, 0)
	c.conn.Close()
	return err
}
