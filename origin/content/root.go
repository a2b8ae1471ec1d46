package content

import (
	"bytes"
	"fmt"
)

// rootMagic begins each encoded root and says its version.
const rootMagic = "grange-root/1"

// Root describes an image: an immutable disk. Its CID names the disk: two disks
// of the same bytes, size and chunk size have the same root, whoever made them
// and from whatever source.
//
// Encoded as a dag-cbor map: {"magic": text, "size": bytes, "chunk": bytes,
// "depth": levels of map, "map": link to the top node, null when the disk is
// all holes}.
type Root struct {
	// Size of the disk in bytes, a multiple of SectorSize.
	Size int64 `cbor:"size"`
	// ChunkSize is the raw length of every chunk. The last one is padded with
	// zeros, so no chunk is ever shorter.
	ChunkSize int `cbor:"chunk"`
	// Map names the top node of the block map, at level Depth.
	Map CID `cbor:"map"`
}

type rootWire struct {
	Magic string `cbor:"magic"`
	Depth int    `cbor:"depth"`
	Root
}

// Chunks returns how many chunks the disk has, holes included.
func (r Root) Chunks() uint64 {
	return uint64((r.Size + int64(r.ChunkSize) - 1) / int64(r.ChunkSize))
}

// Depth returns the level of the top node: the smallest number of levels of
// MapFanout entries that cover all chunks, at least 1.
func (r Root) Depth() int {
	levels := 1
	for covered, chunks := uint64(MapFanout), r.Chunks(); covered < chunks; covered *= MapFanout {
		levels++
	}
	return levels
}

// Validate fails with ErrInvalid when the geometry is outside the limits.
func (r Root) Validate() error {
	switch {
	case r.Size <= 0 || r.Size > SizeMax || r.Size%SectorSize != 0:
		return fmt.Errorf("size of %d bytes: %w: want a multiple of %d up to %d", r.Size, ErrInvalid, SectorSize, int64(SizeMax))
	case r.ChunkSize < ChunkSizeMin || r.ChunkSize > ChunkSizeMax || r.ChunkSize&(r.ChunkSize-1) != 0:
		return fmt.Errorf("chunk size of %d bytes: %w: want a power of two from %d to %d", r.ChunkSize, ErrInvalid, ChunkSizeMin, ChunkSizeMax)
	}
	return nil
}

// Encode returns the bytes whose CID names the root.
func (r Root) Encode(c *Codec) (Verified, error) {
	if err := r.Validate(); err != nil {
		return Verified{}, fmt.Errorf("encode root: %w", err)
	}
	b, err := c.Marshal(rootWire{rootMagic, r.Depth(), r})
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
