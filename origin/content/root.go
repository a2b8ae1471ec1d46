package content

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"
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

// DecodeRoot reads an encoded root; anything but the one encoding of a valid root is ErrCorrupt.
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

// Node is one node of a block map: up to MapFanout entries. At level 1 an entry
// names a chunk; above, it names the node one level below. Entry i of node n at
// level l stands for object n*MapFanout+i at level l-1.
//
// Encoded as dag-cbor: an array of [version, level, entries]. An entry is null
// for a hole, a link, or [link, codec, key] for bytes that are stored under
// another form than their CID names (encryption at rest, a later capability;
// version 1 writes none, and a reader refuses them). Trailing holes are not
// written, so a node has one encoding only.
type Node struct {
	Level   int
	Entries []CID
}

// nodeVersion is the version of the encoding above.
const nodeVersion = 1

// LevelMax is the highest level of a map node: SizeMax in chunks of ChunkSizeMin takes four levels.
const LevelMax = 4

// Entry returns entry i; those past the end are holes.
func (n Node) Entry(i int) CID {
	if i >= len(n.Entries) {
		return CID{}
	}
	return n.Entries[i]
}

// trimmed returns the entries without trailing holes.
func (n Node) trimmed() []CID {
	e := n.Entries
	for len(e) > 0 && e[len(e)-1].IsHole() {
		e = e[:len(e)-1]
	}
	return e
}

// IsHole reports whether all entries are holes; such a node is never stored.
func (n Node) IsHole() bool { return len(n.trimmed()) == 0 }

// Encode returns the bytes whose CID names the node. It panics on a level or a
// number of entries outside the limits: those are the caller's mistakes.
func (n Node) Encode() Verified { return Seal(n.encode()) }

func (n Node) encode() []byte {
	entries := n.trimmed()
	if n.Level < 1 || n.Level > LevelMax || len(entries) == 0 || len(entries) > MapFanout {
		panic(fmt.Sprintf("content: encode node of level %d with %d entries", n.Level, len(entries)))
	}
	b := make([]byte, 0, 8+len(entries)*linkSize)
	b = append(b, 0x83, nodeVersion, byte(n.Level))
	b = appendArrayHead(b, len(entries))
	for _, id := range entries {
		b = appendLink(b, id)
	}
	return b
}

func appendArrayHead(b []byte, n int) []byte {
	switch {
	case n < 24:
		return append(b, 0x80|byte(n))
	case n < 256:
		return append(b, 0x98, byte(n))
	}
	return binary.BigEndian.AppendUint16(append(b, 0x99), uint16(n))
}

// DecodeNode reads an encoded node of the level that the reader expects;
// anything but the one encoding of a valid node is ErrCorrupt.
func DecodeNode(c *Codec, level int, b []byte) (Node, error) {
	if len(b) > NodeSizeMax {
		return Node{}, fmt.Errorf("map node of %d bytes: %w: limit is %d", len(b), ErrCorrupt, NodeSizeMax)
	}
	var w struct {
		_       struct{} `cbor:",toarray"`
		Version int
		Level   int
		Entries []cbor.RawMessage
	}
	if err := c.Unmarshal(b, &w); err != nil {
		return Node{}, fmt.Errorf("map node: %w", err)
	}
	if w.Version != nodeVersion || w.Level != level || level < 1 || level > LevelMax || len(w.Entries) == 0 || len(w.Entries) > MapFanout {
		return Node{}, fmt.Errorf("map node: %w: version %d, level %d, %d entries; want version %d, level %d, 1 to %d entries",
			ErrCorrupt, w.Version, w.Level, len(w.Entries), nodeVersion, level, MapFanout)
	}
	n := Node{Level: w.Level, Entries: make([]CID, len(w.Entries))}
	for i, raw := range w.Entries {
		if err := n.Entries[i].UnmarshalCBOR(raw); err != nil {
			return Node{}, fmt.Errorf("map node, entry %d: %w: %w", i, ErrCorrupt, err)
		}
	}
	if n.IsHole() || !bytes.Equal(n.encode(), b) {
		return Node{}, fmt.Errorf("map node: %w: not the canonical encoding", ErrCorrupt)
	}
	return n, nil
}
