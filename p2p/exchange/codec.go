package exchange

import (
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
	"github.com/grangemesh/grange/p2p/wire"
)

// codec compresses and expands bodies. Safe for concurrent use.
type codec struct {
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	pool scratch.Pool
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

// compress returns body as zstd in a buffer of the pool; nil when that gains little.
func (c *codec) compress(body []byte) *[]byte {
	b := c.pool.Get(len(body) - len(body)/8)
	out := c.enc.EncodeAll(body, (*b)[:0])
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
