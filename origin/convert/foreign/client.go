package foreign

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"syscall"
	"time"
)

// The part of the NBD protocol that is spoken here, from its specification.
const (
	optionMagic     = 0x49484156454f5054
	optionReply     = 0x0003e889045565a9
	optGo           = 7
	optStructured   = 8
	optMetaContext  = 10
	repAck          = 1
	repInfo         = 3
	repContext      = 4
	flagHas         = 1 << 0
	flagReadOnly    = 1 << 1
	requestMagic    = 0x25609513
	requestSize     = 28
	simpleReply     = 0x67446698
	structuredReply = 0x668e33ef
	cmdRead         = 0
	cmdDisconnect   = 2
	cmdStatus       = 7
	wholeRead       = 1 << 2 // a flag of reads: the answer comes in one piece
	doneFlag        = 1
	pieceData       = 1
	pieceStatus     = 5
	pieceError      = 1 << 15
	zeroFlag        = 2 // of an extent: it reads as zeros
	errIO           = errno(syscall.EIO)
	errInvalid      = errno(syscall.EINVAL)
)

const (
	// requestTimeout bounds one answer: a disk behind it may be slow, or asleep.
	requestTimeout = time.Minute
	// answerMax bounds what an answer may hold, in bytes: descriptions of 128 Ki
	// extents, as many as qemu-nbd gives at once, or names.
	answerMax = 2 << 20
	// statusMax is how much one request asks the status of, in bytes: a child may
	// have to read all that describes it within the timeout.
	statusMax = 1 << 30
)

// errno is an error that the other side has answered.
type errno syscall.Errno

func (e errno) Error() string { return syscall.Errno(e).Error() }

// extent is a range of the disk; one without data reads as zeros.
type extent struct {
	start, end int64
	data       bool
}

// client asks a qemu-nbd for the disk, one request at a time.
type client struct {
	conn   net.Conn
	size   int64
	cookie uint64
}

func (c *client) Size() int64 { return c.size }

func (c *client) handshake() error {
	if err := c.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	var greeting [18]byte
	if _, err := io.ReadFull(c.conn, greeting[:]); err != nil {
		return err
	}
	if string(greeting[:8]) != "NBDMAGIC" || binary.BigEndian.Uint64(greeting[8:]) != optionMagic {
		return errors.New("no greeting of NBD's new form")
	}
	if _, err := c.conn.Write([]byte{0, 0, 0, 3}); err != nil { // fixed newstyle, no padding
		return err
	}
	query := append([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15}, "base:allocation"...) // of the export without a name, one
	for _, option := range []struct {
		number uint32
		data   []byte
	}{{optStructured, nil}, {optMetaContext, query}, {optGo, make([]byte, 6)}} {
		if err := c.negotiate(option.number, option.data); err != nil {
			return fmt.Errorf("option %d: %w", option.number, err)
		}
	}
	return nil
}

// negotiate asks for an option, and takes what it says of the export.
func (c *client) negotiate(option uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, optionMagic)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	if _, err := c.conn.Write(append(b, data...)); err != nil {
		return err
	}
	for context := false; ; {
		var head [20]byte
		if _, err := io.ReadFull(c.conn, head[:]); err != nil {
			return err
		}
		body, err := c.body(binary.BigEndian.Uint32(head[16:]))
		if err != nil {
			return err
		}
		switch kind := binary.BigEndian.Uint32(head[12:]); {
		case binary.BigEndian.Uint64(head[:]) != optionReply:
			return errors.New("no reply to an option")
		case kind == repAck && (context || option != optMetaContext):
			return nil
		case kind == repContext:
			context = true
		case kind == repInfo && len(body) == 12 && body[0]|body[1] == 0:
			c.size = int64(min(binary.BigEndian.Uint64(body[2:]), math.MaxInt64))
		case kind != repInfo:
			return fmt.Errorf("refused with %#x: %s", kind, body)
		}
	}
}

// body reads what follows a head.
func (c *client) body(n uint32) ([]byte, error) {
	if n > answerMax {
		return nil, fmt.Errorf("an answer of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(c.conn, b)
	return b, err
}

// ask sends a request and returns the kind and the length of its answer, which is one piece.
func (c *client) ask(command, flags uint16, off, n int64) (kind uint16, length uint32, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return 0, 0, err
	}
	c.cookie++
	b := binary.BigEndian.AppendUint32(make([]byte, 0, requestSize), requestMagic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, c.cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	if _, err := c.conn.Write(binary.BigEndian.AppendUint32(b, uint32(n))); err != nil {
		return 0, 0, err
	}
	var head [20]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		return 0, 0, err
	}
	if binary.BigEndian.Uint32(head[:]) != structuredReply || binary.BigEndian.Uint16(head[4:])&doneFlag == 0 || binary.BigEndian.Uint64(head[8:]) != c.cookie {
		return 0, 0, errors.New("not the answer to what was asked")
	}
	kind, length = binary.BigEndian.Uint16(head[6:]), binary.BigEndian.Uint32(head[16:])
	if kind&pieceError == 0 {
		return kind, length, nil
	}
	body, err := c.body(length)
	if err == nil && len(body) >= 4 {
		err = errno(binary.BigEndian.Uint32(body))
	}
	return 0, 0, fmt.Errorf("an error was answered: %w", err)
}

func (c *client) read(p []byte, off int64) error {
	kind, length, err := c.ask(cmdRead, wholeRead, off, int64(len(p)))
	if err != nil {
		return err
	}
	var at [8]byte
	if kind != pieceData || int64(length) != int64(len(at)+len(p)) {
		return fmt.Errorf("a piece of kind %d with %d bytes for a read of %d", kind, length, len(p))
	}
	if _, err := io.ReadFull(c.conn, at[:]); err != nil {
		return err
	}
	_, err = io.ReadFull(c.conn, p)
	return err
}

// status returns what is known of the disk from off on: at least one range.
func (c *client) status(off int64) ([]extent, error) {
	kind, length, err := c.ask(cmdStatus, 0, off, min(c.size-off, statusMax))
	if err != nil {
		return nil, err
	}
	body, err := c.body(length)
	if err != nil {
		return nil, err
	}
	if kind != pieceStatus || len(body) < 12 || len(body)%8 != 4 {
		return nil, fmt.Errorf("a piece of kind %d with %d bytes for a status", kind, len(body))
	}
	var out []extent
	for b := body[4:]; len(b) > 0 && off < c.size; b = b[8:] {
		n, flags := int64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])
		if n == 0 || n > math.MaxInt64-off {
			return nil, errors.New("a status of nothing")
		}
		e := extent{off, min(off+n, c.size), flags&zeroFlag == 0}
		if off = e.end; len(out) > 0 && out[len(out)-1].data == e.data {
			out[len(out)-1].end = e.end
		} else {
			out = append(out, e)
		}
	}
	return out, nil
}
