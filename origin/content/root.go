package content

import (
	"bytes"
	"fmt"
)

// RootKind says what a root is of.
type RootKind string

const (
	// RootDisk: an immutable disk, in chunks of one length.
	RootDisk RootKind = ""
	// RootTree: an immutable tree of files, in chunks that were cut by what is in them.
	RootTree RootKind = "tree"
)

// Root describes an image: an immutable disk, or a tree. Its CID names it: two disks
// of the same bytes, size and chunk size have the same root, whoever made them
// and from whatever source. Who only moves content looks at its Shape.
//
// Encoded as a dag-cbor map; what is not there is as in a disk:
//
//	magic   text "grange-root/1", which says the version
//	kind    text "tree"; a disk has none
//	size    bytes of the disk, or of all chunks of the tree together
//	chunk   bytes of a chunk, of a tree the most
//	chunks  how many chunks the tree has; a disk has none
//	depth   levels of map
//	map     link to the top node, null when all is holes
type Root struct {
	Kind RootKind `cbor:"kind,omitempty"`
	// Size in bytes. A disk's is a multiple of SectorSize.
	Size int64 `cbor:"size"`
	// ChunkSize is the raw length of every chunk of a disk, the last one padded with
	// zeros; and the most that a chunk of a tree has.
	ChunkSize int `cbor:"chunk"`
	// Count is how many chunks a tree has, holes included; a disk's follows from Size.
	Count uint64 `cbor:"chunks,omitempty"`
	// Map names the top node of the block map.
	Map CID `cbor:"map"`
}

const rootMagic = "grange-root/1"

type rootWire struct {
	Magic string `cbor:"magic"`
	Depth int    `cbor:"depth"`
	Root
}

// Shape returns what the root is to those who move it.
func (r Root) Shape() Shape {
	s := Shape{Chunks: r.Count, ChunkMax: r.ChunkSize, Map: r.Map}
	if r.Kind == RootDisk {
		s.Chunks, s.Even = uint64((r.Size+int64(r.ChunkSize)-1)/int64(r.ChunkSize)), true
	}
	return s
}

// CheckChunk fails with ErrInvalid unless the chunk at index may be raw: as long as the
// shape says, and zeros where it lies beyond the end of a disk.
func (r Root) CheckChunk(index uint64, raw []byte) error {
	if err := r.Shape().CheckChunk(len(raw)); err != nil {
		return err
	}
	if end := r.Size - int64(index)*int64(len(raw)); r.Kind == RootDisk && end < int64(len(raw)) && !IsZero(raw[end:]) {
		return fmt.Errorf("%w: bytes beyond the size of the disk, %d, are not zero", ErrInvalid, r.Size)
	}
	return nil
}

// Validate fails with ErrInvalid when the geometry is outside the limits.
func (r Root) Validate() error {
	switch {
	case r.Size <= 0 || r.Size > SizeMax || r.Kind == RootDisk && r.Size%SectorSize != 0:
		return fmt.Errorf("size of %d bytes: %w: want a multiple of %d up to %d", r.Size, ErrInvalid, SectorSize, int64(SizeMax))
	case r.ChunkSize < ChunkSizeMin || r.ChunkSize > ChunkSizeMax || r.ChunkSize&(r.ChunkSize-1) != 0:
		return fmt.Errorf("chunk size of %d bytes: %w: want a power of two from %d to %d", r.ChunkSize, ErrInvalid, ChunkSizeMin, ChunkSizeMax)
	case r.Kind == RootDisk && r.Count == 0:
		return nil
	case r.Kind != RootTree || r.Count > ChunksMax || r.Count > uint64(r.Size) || r.Count*uint64(r.ChunkSize) < uint64(r.Size):
		return fmt.Errorf("root of kind %.20q: %w: %d bytes in %d chunks of up to %d", string(r.Kind), ErrInvalid, r.Size, r.Count, r.ChunkSize)
	}
	return nil
}

// Encode returns the bytes whose CID names the root.
func (r Root) Encode(c *Codec) (Verified, error) {
	if err := r.Validate(); err != nil {
		return Verified{}, fmt.Errorf("encode root: %w", err)
	}
	b, err := c.Marshal(rootWire{rootMagic, r.Shape().Depth(), r})
	if err != nil {
		return Verified{}, fmt.Errorf("encode root: %w", err)
	}
	return Seal(b), nil
}

// DecodeRoot reads an encoded root; anything but the one encoding of a valid
// root is ErrCorrupt.
func DecodeRoot(c *Codec, b []byte) (Root, error) {
	if len(b) > RootSizeMax {
		return Root{}, fmt.Errorf("root of %d bytes: %w: limit is %d", len(b), ErrCorrupt, RootSizeMax)
	}
	var w rootWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Root{}, fmt.Errorf("root: %w", err)
	}
	if w.Magic != rootMagic {
		return Root{}, fmt.Errorf("root: %w: magic %.20q, want %q", ErrCorrupt, w.Magic, rootMagic)
	}
	again, err := w.Root.Encode(c)
	if err != nil {
		return Root{}, fmt.Errorf("root: %w: %w", ErrCorrupt, err)
	}
	if !bytes.Equal(again.Bytes(), b) {
		return Root{}, fmt.Errorf("root: %w: not the canonical encoding", ErrCorrupt)
	}
	return w.Root, nil
}
