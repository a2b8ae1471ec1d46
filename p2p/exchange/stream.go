package exchange

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// readBuffer takes a header and small frames in one read; longer bodies go past it.
	readBuffer = 4 << 10
	// headRoom is how much of a body is copied behind its head, so that both leave
	// in one TLS record of 16 KiB (yamux adds 12 bytes) and not in two.
	headRoom = 16<<10 - 12
	// serveTimeout is how long an asker may take none of its answers: by then its requests
	// have stalled several times over. A frame has as long to arrive.
	serveTimeout = 10 * time.Second
	// rateMin is the slowest useful link, in bytes a second; long frames get that time.
	rateMin = 64 << 10
	// helloTimeout is how long a new stream's other end may be silent before its hello.
	helloTimeout = 5 * time.Second
	// bodyStep is a frame's memory before any of it has come; it grows with what does.
	bodyStep = 64 << 10
	// slowFrame is how long a frame may take before what waits behind it is excused.
	slowFrame = 100 * time.Millisecond
)

// framed reads and writes frames on a stream. One goroutine reads, any may write.
type framed struct {
	stream network.Stream
	in     *bufio.Reader
	// excused is when requests last had a good reason to wait, on the whole
	// connection: a frame that takes long to arrive. Unix nanoseconds.
	excused *atomic.Int64
	// timeout is how long a write may make no headway.
	timeout time.Duration

	// mu serializes writes; it guards out.
	mu  lock
	out []byte
}

func newFramed(s network.Stream, timeout time.Duration, excused *atomic.Int64) *framed {
	return &framed{stream: s, in: bufio.NewReaderSize(s, readBuffer), timeout: timeout, excused: excused, mu: newLock()}
}

func (f *framed) send(id uint32, m wire.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out = wire.Append(f.out[:0], id, m)
	err := f.write(f.out)
	if cap(f.out) > 2*headRoom {
		f.out = nil
	}
	return err
}

const (
	// headSize is how much a Data frame has before its body.
	headSize = wire.HeaderSize + wire.DataSize
	// bodyOffset is where a body lies in its room: the kernel takes three times as long
	// to copy a chunk to an odd place.
	bodyOffset = 64
)

// sendData writes a Data frame of o; room, if not nil, is its body with headSize before it.
// begin is called with the right to write, and says whether to ask for an acknowledgement.
func (f *framed) sendData(id uint32, d wire.Data, o Object, room []byte, begin func(size int) (ack bool)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d.Ack = begin(d.Size())
	f.out = d.Append(f.out[:0], id)
	parts := [...][]byte{room, nil, o.Page}
	if room != nil {
		copy(room, f.out)
	} else {
		n := min(len(o.Body), headRoom-len(f.out))
		f.out = append(f.out, o.Body[:n]...)
		parts = [...][]byte{f.out, o.Body[n:], o.Page}
	}
	for _, b := range parts {
		if len(b) == 0 {
			continue
		}
		if err := f.write(b); err != nil {
			return err
		}
	}
	return nil
}

// timeFor is how long n bytes take on the slowest link that is any use.
func timeFor(n int) time.Duration { return time.Duration(n) * time.Second / rateMin }

// write writes b; a stream that could not take it is of no use. The caller holds mu.
func (f *framed) write(b []byte) error {
	err := f.stream.SetWriteDeadline(time.Now().Add(f.timeout + timeFor(len(b))))
	if err == nil {
		_, err = f.stream.Write(b)
	}
	if err != nil {
		_ = f.stream.Reset()
		return fmt.Errorf("write: %w: %w", ErrDisconnected, err)
	}
	return nil
}

// header reads one. Errors of the stream wrap ErrDisconnected, of the peer ErrCorrupt.
func (f *framed) header() (wire.Header, error) {
	var b [wire.HeaderSize]byte
	if _, err := io.ReadFull(f.in, b[:]); err != nil {
		return wire.Header{}, fmt.Errorf("read: %w: %w", ErrDisconnected, err)
	}
	return wire.ParseHeader(b)
}

// message reads the payload of a small frame.
func (f *framed) message(h wire.Header) (wire.Message, error) {
	p := make([]byte, min(h.Length, bodyStep))
	for filled := 0; ; {
		if err := f.fill(p[filled:]); err != nil {
			return nil, err
		}
		if filled = len(p); filled == h.Length {
			return wire.Decode(h, p)
		}
		p = append(p, make([]byte, min(filled, h.Length-filled))...)
	}
}

// fill reads len(b) bytes. One that sends them too slowly is stalled, however alive.
func (f *framed) fill(b []byte) error {
	begun := time.Now()
	for n := 0; n < len(b); {
		k, err := f.in.Read(b[n:])
		if n += k; err != nil && n < len(b) {
			return fmt.Errorf("read: %w: %w", ErrDisconnected, err)
		}
		if n == len(b) && n <= readBuffer {
			break // small: not worth another look at the clock
		}
		switch now := time.Now(); {
		case n < len(b) && now.Sub(begun) > serveTimeout+timeFor(len(b)):
			return fmt.Errorf("read: %w: %d of %d bytes came", ErrStalled, n, len(b))
		case now.Sub(begun) > slowFrame:
			f.excused.Store(now.UnixNano())
		}
	}
	return nil
}

func (f *framed) skip(n int) error {
	if _, err := f.in.Discard(n); err != nil {
		return fmt.Errorf("read: %w: %w", ErrDisconnected, err)
	}
	return nil
}

func (f *framed) hello() (wire.Hello, error) {
	if err := f.stream.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return wire.Hello{}, fmt.Errorf("read: %w: %w", ErrDisconnected, err)
	}
	h, err := f.header()
	if err != nil {
		return wire.Hello{}, err
	}
	if h.Type != wire.TypeHello {
		return wire.Hello{}, fmt.Errorf("first frame: %w: type %d, want a hello", content.ErrCorrupt, h.Type)
	}
	m, err := f.message(h)
	if err != nil {
		return wire.Hello{}, err
	}
	return m.(wire.Hello), f.stream.SetReadDeadline(time.Time{})
}

// outstanding are the unanswered indexes of a Want. Not safe for concurrent use.
type outstanding struct {
	indexes  []uint64 // rising
	answered []bool
	left     int
}

func newOutstanding(indexes []uint64) outstanding {
	return outstanding{indexes, make([]bool, len(indexes)), len(indexes)}
}

// answer strikes index off, and reports whether it waited for that.
func (o *outstanding) answer(index uint64) bool {
	at, ok := slices.BinarySearch(o.indexes, index)
	if !ok || o.answered[at] {
		return false
	}
	o.answered[at] = true
	o.left--
	return true
}

// rest returns what has no answer.
func (o *outstanding) rest() []uint64 {
	var rest []uint64
	for i, index := range o.indexes {
		if !o.answered[i] {
			rest = append(rest, index)
		}
	}
	return rest
}

// codec compresses and expands bodies. Safe for concurrent use.
type codec struct {
	enc  [link.Much + 1]*zstd.Encoder
	dec  *zstd.Decoder
	pool scratch.Pool
}

func newCodec() (*codec, error) {
	var enc [link.Much + 1]*zstd.Encoder
	for effort, level := range map[link.Effort]zstd.EncoderLevel{link.Some: zstd.SpeedFastest, link.Much: zstd.SpeedBetterCompression} {
		var err error
		if enc[effort], err = zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithWindowSize(wire.BodySizeMax), zstd.WithEncoderCRC(false)); err != nil {
			return nil, fmt.Errorf("exchange: zstd: %w", err)
		}
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(2*wire.BodySizeMax))
	if err != nil {
		return nil, fmt.Errorf("exchange: zstd: %w", err)
	}
	return &codec{enc: enc, dec: dec}, nil
}

// compress returns body as zstd in a buffer of the pool; nil when that gains little.
func (c *codec) compress(body []byte, effort link.Effort) *[]byte {
	least := len(body) / 8
	if effort == link.Much { // the line is what is short
		least = len(body) / 64
	}
	b := c.pool.Get(len(body) - least)
	out := c.enc[effort].EncodeAll(body, (*b)[:0])
	if len(out) > len(*b) || &out[0] != &(*b)[0] {
		c.pool.Put(b)
		return nil
	}
	*b = out
	return b
}

// expand reads what compress made of exactly raw bytes.
func (c *codec) expand(stored []byte, raw int) (*[]byte, error) {
	b := c.pool.Get(raw)
	out, err := c.dec.DecodeAll(stored, (*b)[:0:raw])
	if err != nil || len(out) != raw {
		c.pool.Put(b)
		return nil, fmt.Errorf("body: %w: %d bytes of zstd for %d raw: %v", content.ErrCorrupt, len(stored), raw, err)
	}
	return b, nil // where out is: there was room for no more
}

// lock is held while the network, or a callback, is waited for. Unlike that of a sync.Mutex,
// the wait for it lets the simulated time of a test pass.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) Lock()   { l <- struct{}{} }
func (l lock) Unlock() { <-l }
