package exchange

import (
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// compressBelow is the rate of a link, in bytes a second, under which bodies
	// are compressed for it: a core compresses several times that, so it never
	// holds the link up, and the gigabit links of a farm stay as they are.
	compressBelow = 64 << 20
	// compressMin is the length, in bytes, under which it isn't worth the trouble.
	compressMin = 4 << 10
	// plainAfter is how many bodies go as they are after one that did not shrink
	// by an eighth: its neighbours are mostly of the same kind.
	plainAfter = 15
)

// codec compresses and expands bodies. Safe for concurrent use.
type codec struct {
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	pool wire.Pool
}

func newCodec() (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(wire.BodySizeMax), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("exchange: zstd: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(2*wire.BodySizeMax))
	if err != nil {
		return nil, fmt.Errorf("exchange: zstd: %w", err)
	}
	return &codec{enc: enc, dec: dec}, nil
}

// compress returns body as a zstd frame in a buffer of the pool, or nil when it
// does not shrink enough to be worth expanding.
func (c *codec) compress(body []byte) *wire.Buffer {
	b := c.pool.Get(len(body) - len(body)/8)
	out := c.enc.EncodeAll(body, b.B[:0])
	if len(out) > len(b.B) || &out[0] != &b.B[0] {
		c.pool.Put(b)
		return nil
	}
	b.B = out
	return b
}

// expand reads what compress made of exactly raw bytes.
func (c *codec) expand(stored []byte, raw int) (*wire.Buffer, error) {
	b := c.pool.Get(raw)
	out, err := c.dec.DecodeAll(stored, b.B[:0:raw])
	if err != nil || len(out) != raw {
		c.pool.Put(b)
		return nil, fmt.Errorf("body: %w: %d bytes of zstd for %d raw: %v", content.ErrCorrupt, len(stored), raw, err)
	}
	b.B = out
	return b, nil
}

// mayCompress reports whether the next body for the link should be tried.
func (l *link) mayCompress(size int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	rate, ok := l.window.measured()
	if !ok || rate >= compressBelow || size < compressMin {
		return false
	}
	if l.plain > 0 {
		l.plain--
		return false
	}
	return true
}

// incompressible notes that a body did not shrink.
func (l *link) incompressible() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.plain = plainAfter
}
