package pack

import (
	"fmt"
	"math"

	"github.com/grangemesh/grange/origin/content"
)

// Codec says how a frame is stored.
type Codec uint8

const (
	// CodecRaw: the bytes themselves.
	CodecRaw Codec = 0
	// CodecZstd: one zstd frame.
	CodecZstd Codec = 1
)

const (
	// SizeTarget is the size at which a pack is closed: large enough that a
	// request costs little, small enough that a lost upload does too.
	SizeTarget = 32 << 20
	// SizeMax bounds a pack, in bytes: one PUT without multipart.
	SizeMax = 64 << 20

	// FrameSizeMax bounds a stored frame, and its raw form, in bytes: a chunk of
	// the largest size and what encryption may add to it.
	FrameSizeMax = content.ChunkSizeMax + 4<<10
)

// Location is where the stored frame of an object lies. It is a hint: what is
// read there is checked against the object's CID. The zero Location is nowhere.
type Location struct {
	Pack ID
	// Offset and Length of the stored frame in the pack, in bytes.
	Offset, Length uint32
	// Raw is the length of the object itself, in bytes.
	Raw   uint32
	Codec Codec
	// Key is the number of the key that the frame is encrypted under; 0 is none.
	// No other is written yet, and a reader refuses them.
	Key uint8
}

// IsZero reports whether l is nowhere.
func (l Location) IsZero() bool { return l == Location{} }

// End returns the offset of the first byte behind the frame.
func (l Location) End() uint32 { return l.Offset + l.Length }

// Run returns the run that the frame belongs to: the one in which it starts.
func (l Location) Run() Run { return Run{l.Pack, l.Offset / content.RunSize} }

// String returns "pack ID at OFFSET+LENGTH".
func (l Location) String() string { return fmt.Sprintf("pack %s at %d+%d", l.Pack, l.Offset, l.Length) }

// Check fails with ErrCorrupt when no pack could hold a frame like l.
func (l Location) Check() error {
	switch {
	case l.Codec > CodecZstd || l.Key != 0:
		return fmt.Errorf("%w: codec %d, key %d are not known here; a newer version may read them", content.ErrCorrupt, l.Codec, l.Key)
	case l.Offset < headerSize || l.Length == 0 || uint64(l.Offset)+uint64(l.Length) > math.MaxUint32:
		return fmt.Errorf("%w: frame at %d+%d", content.ErrCorrupt, l.Offset, l.Length)
	case l.Raw == 0 || l.Length > l.Raw || l.Codec == CodecRaw && l.Length != l.Raw:
		return fmt.Errorf("%w: frame of %d bytes for %d raw ones, codec %d", content.ErrCorrupt, l.Length, l.Raw, l.Codec)
	}
	return nil
}

// Run is content.RunSize bytes of a pack: the unit of leads and of origin reads.
type Run struct {
	Pack ID
	N    uint32
}

// Extent is a frame that is named: an object and where it lies.
type Extent struct {
	CID content.CID
	Location
}

// Pair is a map node and its locator page, which lies directly behind it.
type Pair struct{ Node, Page Extent }
