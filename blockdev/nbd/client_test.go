package nbd_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"
	"time"
)

// The numbers that the tests speak, written down anew: a slip in the package's
// own would otherwise agree with itself.
const (
	optExportName, optAbort, optList, optStartTLS = 1, 2, 3, 5
	optInfo, optGo, optStructured                 = 6, 7, 8
	optListMeta, optSetMeta                       = 9, 10

	repAck, repServer, repInfo, repMeta = 1, 2, 3, 4
	errUnsup, errInvalid                = 1<<31 + 1, 1<<31 + 3
	errUnknown, errTooBig               = 1<<31 + 6, 1<<31 + 9

	cmdRead, cmdWrite, cmdDisconnect, cmdFlush             = 0, 1, 2, 3
	cmdTrim, cmdCache, cmdWriteZeroes, cmdBlockStatus      = 4, 5, 6, 7
	flagFUA, flagNoHole, flagDF, flagReqOne, flagFastZero  = 1, 2, 4, 8, 16
	eperm, eio, einval, enospc, eoverflow, enotsup, eclose = 1, 5, 22, 28, 75, 95, 108
)

// client speaks the protocol byte by byte. It fails the test on anything that a
// server must not say.
type client struct {
	testing.TB
	conn       net.Conn
	in         *bufio.Reader
	structured bool
	size       uint64
	flags      uint16
	asked      map[uint64]ask
	cookie     uint64
}

type ask struct {
	command uint16
	offset  uint64
	length  uint32
}

// answer is one whole reply.
type answer struct {
	cookie   uint64
	code     uint32
	words    string
	data     []byte
	holes    int      // bytes that came as holes
	chunks   int      // of data and holes
	states   []uint32 // length and state in turns
	contexts []uint32 // that they are of
}

// patience bounds each conversation of a test.
const patience = 20 * time.Second

// connect opens a socket to the server that the URI names.
func connect(tb testing.TB, uri string) net.Conn {
	tb.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		tb.Fatal(err)
	}
	network, address := "tcp", u.Host
	if u.Scheme == "nbd+unix" {
		network, address = "unix", u.Query().Get("socket")
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	return conn
}

// greet connects and answers the server's greeting.
func greet(tb testing.TB, uri string) *client {
	tb.Helper()
	conn := connect(tb, uri)
	c := &client{TB: tb, conn: conn, in: newReader(conn), asked: map[uint64]ask{}}
	hello := c.bytes(18)
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(hello[16:]) != 3 {
		tb.Fatalf("greeting is %q", hello)
	}
	c.send(uint32(3))
	return c
}

func newReader(conn net.Conn) *bufio.Reader { return bufio.NewReader(conn) }

// dial opens the export of the URI with structured replies and block
// status.
func dial(tb testing.TB, uri string) *client {
	tb.Helper()
	c := greet(tb, uri)
	name := nameOf(tb, uri)
	c.mustOption(optStructured)
	c.structured = true
	if got := c.option(optSetMeta, meta(name, "base:allocation")); len(got) != 2 || got[0].kind != repMeta || got[1].kind != repAck {
		tb.Fatalf("set meta context: %v", got)
	}
	c.open(name)
	return c
}

// dialSimple opens the export without structured replies.
func dialSimple(tb testing.TB, uri string) *client {
	tb.Helper()
	c := greet(tb, uri)
	c.open(nameOf(tb, uri))
	return c
}

func nameOf(tb testing.TB, uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		tb.Fatal(err)
	}
	return u.Path[1:]
}

func (c *client) bytes(n int) []byte {
	c.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c.in, p); err != nil {
		c.Fatalf("read %d bytes: %v", n, err)
	}
	return p
}

// send writes numbers, strings and bytes in the order of the network.
func (c *client) send(parts ...any) {
	c.Helper()
	if _, err := c.conn.Write(pack(parts...)); err != nil {
		c.Fatalf("write: %v", err)
	}
}

func pack(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		default:
			var err error
			if b, err = binary.Append(b, binary.BigEndian, p); err != nil {
				panic(err)
			}
		}
	}
	return b
}

func counted(s string) []byte { return pack(uint32(len(s)), s) }

func meta(name string, queries ...string) []byte {
	b := pack(counted(name), uint32(len(queries)))
	for _, q := range queries {
		b = append(b, counted(q)...)
	}
	return b
}

// said is one answer to an option.
type said struct {
	kind uint32
	data []byte
}

func (s said) String() string { return fmt.Sprintf("%#x %q", s.kind, s.data) }

// option sends an option and returns what is said to it, up to the
// acknowledgement or error.
func (c *client) option(code uint32, data []byte) (all []said) {
	c.Helper()
	c.send("IHAVEOPT", code, uint32(len(data)), data)
	for {
		head := c.bytes(20)
		if magic := binary.BigEndian.Uint64(head); magic != 0x3e889045565a9 {
			c.Fatalf("answer's magic is %#x", magic)
		}
		if got := binary.BigEndian.Uint32(head[8:]); got != code {
			c.Fatalf("answer is to option %d, not %d", got, code)
		}
		s := said{kind: binary.BigEndian.Uint32(head[12:])}
		s.data = c.bytes(int(binary.BigEndian.Uint32(head[16:])))
		all = append(all, s)
		if s.kind == repAck || s.kind >= 1<<31 {
			return all
		}
	}
}

func (c *client) mustOption(code uint32) {
	c.Helper()
	if got := c.option(code, nil); len(got) != 1 || got[0].kind != repAck {
		c.Fatalf("option %d: %v", code, got)
	}
}

// open goes to the transmission phase.
func (c *client) open(name string) {
	c.Helper()
	got := c.option(optGo, pack(counted(name), uint16(0)))
	if got[len(got)-1].kind != repAck {
		c.Fatalf("go to %q: %v", name, got)
	}
	for _, s := range got {
		if s.kind == repInfo && binary.BigEndian.Uint16(s.data) == 0 {
			c.size, c.flags = binary.BigEndian.Uint64(s.data[2:]), binary.BigEndian.Uint16(s.data[10:])
		}
	}
}

// ask sends a request with a new cookie, which it returns.
func (c *client) ask(command, flags uint16, off uint64, n uint32, payload ...byte) uint64 {
	c.Helper()
	c.cookie++
	c.asked[c.cookie] = ask{command, off, n}
	c.send(c.request(c.cookie, command, flags, off, n), payload)
	return c.cookie
}

func (c *client) request(cookie uint64, command, flags uint16, off uint64, n uint32) []byte {
	return pack(uint32(0x25609513), flags, command, cookie, off, n)
}

// do sends a request and returns its reply, which must be the next.
func (c *client) do(command, flags uint16, off uint64, n uint32, payload ...byte) answer {
	c.Helper()
	cookie := c.ask(command, flags, off, n, payload...)
	a := c.answer()
	if a.cookie != cookie {
		c.Fatalf("the reply is to request %d, not %d", a.cookie, cookie)
	}
	return a
}

// answer reads the next reply.
func (c *client) answer() answer {
	c.Helper()
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil { // for each, of however many
		c.Fatal(err)
	}
	switch magic := binary.BigEndian.Uint32(c.bytes(4)); magic {
	case 0x67446698:
		return c.simple()
	case 0x668e33ef:
		return c.chunks()
	default:
		c.Fatalf("reply's magic is %#x", magic)
	}
	return answer{}
}

// take returns what was asked with the cookie, once.
func (c *client) take(cookie uint64) ask {
	c.Helper()
	q, ok := c.asked[cookie]
	if !ok {
		c.Fatalf("a reply to %d, which was not asked", cookie)
	}
	delete(c.asked, cookie)
	return q
}

func (c *client) simple() (a answer) {
	c.Helper()
	head := c.bytes(12)
	a.code, a.cookie = binary.BigEndian.Uint32(head), binary.BigEndian.Uint64(head[4:])
	q := c.take(a.cookie)
	if c.structured && q.command == cmdRead {
		c.Fatal("a simple reply to a read beside structured replies")
	}
	if q.command == cmdRead && a.code == 0 {
		a.data = c.bytes(int(q.length))
	}
	return a
}

func (c *client) chunks() (a answer) {
	c.Helper()
	if !c.structured {
		c.Fatal("a structured reply that was not negotiated")
	}
	var q ask
	covered := uint64(0)
	for first := true; ; first = false {
		if !first {
			c.bytes(4)
		}
		head := c.bytes(16)
		flags, kind := binary.BigEndian.Uint16(head), binary.BigEndian.Uint16(head[2:])
		cookie, payload := binary.BigEndian.Uint64(head[4:]), c.bytes(int(binary.BigEndian.Uint32(head[12:])))
		if first {
			a.cookie, q = cookie, c.take(cookie)
			if q.command == cmdRead {
				a.data = make([]byte, q.length)
			}
		} else if cookie != a.cookie {
			c.Fatalf("a chunk of %d amid the reply to %d", cookie, a.cookie)
		}
		covered += c.chunk(&a, q, kind, payload)
		if flags&1 != 0 {
			break
		}
	}
	if q.command == cmdRead && a.code == 0 && covered != uint64(q.length) {
		c.Fatalf("%d of %d bytes came", covered, q.length)
	}
	return a
}

// chunk adds one chunk to a and returns how many of the bytes asked for it
// brought.
func (c *client) chunk(a *answer, q ask, kind uint16, payload []byte) uint64 {
	c.Helper()
	switch kind {
	case 1, 2:
		a.chunks++
		at, n := binary.BigEndian.Uint64(payload)-q.offset, uint64(len(payload)-8)
		if kind == 2 {
			n = uint64(binary.BigEndian.Uint32(payload[8:]))
			a.holes += int(n)
		}
		if q.command != cmdRead || n == 0 || at > uint64(q.length) || n > uint64(q.length)-at {
			c.Fatalf("a chunk of %d bytes at %d in the reply to %v", n, at, q)
		}
		if kind == 1 {
			copy(a.data[at:], payload[8:])
		}
		return n
	case 5:
		a.contexts = append(a.contexts, binary.BigEndian.Uint32(payload))
		if q.command != cmdBlockStatus {
			c.Fatalf("a status %x in the reply to %v", payload, q)
		}
		for p := payload[4:]; len(p) > 0; p = p[4:] {
			a.states = append(a.states, binary.BigEndian.Uint32(p))
		}
	case 0x8001:
		a.code = binary.BigEndian.Uint32(payload)
		a.words = string(payload[6:])
		if int(binary.BigEndian.Uint16(payload[4:])) != len(a.words) || a.code == 0 {
			c.Fatalf("an error chunk %x", payload)
		}
	default:
		c.Fatalf("a chunk of type %d", kind)
	}
	return 0
}

// ended fails the test unless the server closes the connection, saying no more.
func (c *client) ended() {
	c.Helper()
	if n, err := io.Copy(io.Discard, c.in); n > 0 || errors.Is(err, net.ErrClosed) || isTimeout(err) {
		c.Fatalf("the server said %d more bytes: %v", n, err)
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
