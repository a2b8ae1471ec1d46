package pack

import (
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/origin/content"
)

// Writer fills one pack in memory.
type Writer struct {
	id        ID
	buf       []byte // header and frames
	directory []byte
}

// Sealed is a pack that is ready for the bucket.
type Sealed struct {
	ID     ID
	Bytes  []byte
	Footer Footer
	// Directory and Signature are the parts of Bytes that hold them.
	Directory, Signature []byte
}

// Sign returns a member's word that the pack has this directory, digested; nil is
// a pack that nobody vouches for.
type Sign func(id ID, directory content.CID) ([]byte, error)

// NewWriter begins a pack in buf, whose old content is dropped.
func NewWriter(id ID, buf []byte) *Writer {
	return &Writer{id: id, buf: append(buf[:0], packMagic...)}
}

// ID returns the name of the pack.
func (w *Writer) ID() ID { return w.id }

// Empty reports whether no frame was added.
func (w *Writer) Empty() bool { return len(w.directory) == 0 }

// Mark returns what the pack has by now, for Cut.
func (w *Writer) Mark() (bytes, entries int) { return len(w.buf), len(w.directory) }

// Cut takes away what was added since a Mark.
func (w *Writer) Cut(bytes, entries int) { w.buf, w.directory = w.buf[:bytes], w.directory[:entries] }

// Size returns the most that the pack would take with n more frames of total length more.
func (w *Writer) Size(n, more int) int {
	return len(w.buf) + more + len(w.directory) + n*EntrySize + content.RecordSizeMax + footerSize
}

// Add appends a frame and returns where it lies.
func (w *Writer) Add(role Role, id content.CID, rawSize int, codec Codec, frame []byte) Location {
	at := Location{
		Pack: w.id, Offset: uint32(len(w.buf)), Length: uint32(len(frame)), Raw: uint32(rawSize), Codec: codec,
	}
	if len(w.buf)+len(frame) > SizeMax {
		panic(fmt.Sprintf("pack: frame of %d bytes in a pack of %d", len(frame), len(w.buf)))
	}
	w.buf = append(w.buf, frame...)
	w.directory = AppendEntry(w.directory, Entry{Extent{id, at}, role})
	return at
}

// Seal ends the pack; sign is nil for one that nobody vouches for.
func (w *Writer) Seal(sign Sign) (Sealed, error) {
	var signature []byte
	if sign != nil {
		var err error
		if signature, err = sign(w.id, content.Sum(w.directory)); err != nil {
			return Sealed{}, fmt.Errorf("pack %s: %w", w.id, err)
		}
	}
	return w.seal("", signature), nil
}

// SealStub ends a pack without frames, whose own are in the pack moved.
func (w *Writer) SealStub(moved ID) Sealed { return w.seal(moved, nil) }

func (w *Writer) seal(moved ID, signature []byte) Sealed {
	d := len(w.buf)
	s := d + len(w.directory)
	f := Footer{
		entries:   uint32(len(w.directory) / EntrySize),
		directory: uint32(d),
		length:    uint32(s + len(signature) + footerSize),
		signature: uint32(len(signature)),
		digest:    content.Sum(w.directory),
		moved:     moved,
	}
	b := f.append(append(append(w.buf, w.directory...), signature...))
	return Sealed{w.id, b, f, b[d:s], b[s : s+len(signature)]}
}

// SizeOf returns the length of the pack whose directory ends with the entry last.
func SizeOf(last Entry, directory, signature []byte) int64 {
	return int64(last.End()) + int64(len(directory)) + int64(len(signature)) + footerSize
}

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
func NewEncoder(workers int) (*zstd.Encoder, error) { return newEncoder(workers, zstd.SpeedFastest) }

// NewDenseEncoder is NewEncoder for what is stored once and read by everybody: chunks of a disk take a tenth less, at a
// tenth of the speed. They are read as fast.
func NewDenseEncoder(workers int) (*zstd.Encoder, error) {
	return newEncoder(workers, zstd.SpeedBestCompression)
}

func newEncoder(workers int, level zstd.EncoderLevel) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(level),
		zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(workers))
}

// newDecoder returns a decoder that is safe for concurrent use and starts no goroutines. It never writes more
// than it is given room for, so a hostile frame costs no more memory than an honest one.
func newDecoder() *zstd.Decoder {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(ManifestSizeMax))
	if err != nil {
		panic(fmt.Sprintf("pack: zstd decoder options: %v", err))
	}
	return dec
}

// decodeFrame turns a stored frame into the object that e names, which lies in raw, e.Raw
// bytes of memory, from then on.
func decodeFrame(dec *zstd.Decoder, e Extent, frame, raw []byte) (content.Verified, error) {
	if err := e.Check(); err != nil {
		return content.Verified{}, err
	}
	if e.Codec == CodecRaw {
		copy(raw, frame)
	} else if out, err := dec.DecodeAll(frame, raw[:0:len(raw)]); err != nil || len(out) != len(raw) {
		return content.Verified{}, fmt.Errorf("%w: %d raw bytes, want %d: %v", content.ErrCorrupt, len(out), len(raw), err)
	}
	return content.Verify(e.CID, raw)
}
