package pack

import (
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/origin/content"
)

// gainMin is the part of its length that a frame must save to be worth the
// reader's decompression: a sixteenth.
const gainMin = 16

// EncodeFrame appends the stored form of raw to dst.
func EncodeFrame(enc *zstd.Encoder, dst, raw []byte) ([]byte, Codec) {
	start := len(dst)
	dst = enc.EncodeAll(raw, dst)
	if len(dst)-start > len(raw)-max(1, len(raw)/gainMin) {
		return append(dst[:start], raw...), CodecRaw
	}
	return dst, CodecZstd
}

// NewEncoder returns an encoder for up to workers callers at once. Frames need
// no checksum of their own: the CID of what they hold is checked.
func NewEncoder(workers int) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(workers))
}

// newDecoder returns a decoder that is safe for concurrent use and starts no
// goroutines. It never writes more than it is given room for, so a hostile frame
// costs no more memory than an honest one.
func newDecoder() *zstd.Decoder {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(ManifestSizeMax))
	if err != nil {
		panic(fmt.Sprintf("pack: zstd decoder options: %v", err))
	}
	return dec
}

// decodeFrame turns a stored frame into the object that e names. The result
// shares no memory with frame.
func decodeFrame(dec *zstd.Decoder, e Extent, frame []byte) (content.Verified, error) {
	if err := e.Check(); err != nil {
		return content.Verified{}, err
	}
	raw := make([]byte, 0, e.Raw)
	switch e.Codec {
	case CodecRaw:
		raw = append(raw, frame...)
	case CodecZstd:
		var err error
		if raw, err = dec.DecodeAll(frame, raw); err != nil {
			return content.Verified{}, fmt.Errorf("%w: %w", content.ErrCorrupt, err)
		}
	}
	if len(raw) != int(e.Raw) {
		return content.Verified{}, fmt.Errorf("%w: %d raw bytes, want %d", content.ErrCorrupt, len(raw), e.Raw)
	}
	return content.Verify(e.CID, raw)
}
