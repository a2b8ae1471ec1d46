package content

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

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

// LevelMax is the highest level of a map node: SizeMax in chunks of
// ChunkSizeMin takes four levels.
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
