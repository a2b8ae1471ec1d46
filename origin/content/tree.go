package content

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Tree describes an immutable file tree. Its CID names the tree, as that of a
// [Root] names a disk; both stand over a block map of the same nodes, so places,
// bitmaps, locator pages and transfers are the same for both.
//
// The chunks under the map are those of the files, in the order of the listing
// and cut wherever the importer chose, then those of the listing: each of its
// chunks is one page (see [EncodeTreePage]). All are stored whole, of different
// lengths up to ChunkSizeMax.
//
// Encoded as a dag-cbor map: {"magic": text, "entries": number, "size": bytes,
// "chunks": number, "listing": number, "depth": levels of map, "map": link to the
// top node, null when the tree is empty}.
type Tree struct {
	// Entries is the number of directories, files and symbolic links; the
	// directory that the tree stands for is not one of them.
	Entries uint64
	// Size of all files, in bytes.
	Size int64
	// Chunks under the map, of which the last Listing are pages of the listing.
	Chunks, Listing uint64
	// Map names the top node of the block map, at level Depth.
	Map CID
}

const (
	treeMagic = "grange-tree/1"

	// TreeChunksMax bounds the chunks of a tree: indexes in a Bitmap are 32 bits.
	TreeChunksMax = 1 << 32
)

type treeWire struct {
	Magic   string `cbor:"magic"`
	Entries uint64 `cbor:"entries"`
	Size    int64  `cbor:"size"`
	Chunks  uint64 `cbor:"chunks"`
	Listing uint64 `cbor:"listing"`
	Depth   int    `cbor:"depth"`
	Map     CID    `cbor:"map"`
}

// Depth returns the level of the top node of the map.
func (t Tree) Depth() int { return depth(t.Chunks) }

// Validate fails with ErrInvalid when the numbers contradict each other.
func (t Tree) Validate() error {
	switch {
	case t.Chunks > TreeChunksMax || t.Size < 0 || t.Size > SizeMax:
		return fmt.Errorf("tree of %d bytes in %d chunks: %w: the limits are %d and %d", t.Size, t.Chunks, ErrInvalid, int64(SizeMax), int64(TreeChunksMax))
	case t.Listing > t.Chunks, (t.Listing == 0) != (t.Entries == 0), (t.Listing == 0) != t.Map.IsHole(), t.Listing == 0 && t.Chunks > 0:
		return fmt.Errorf("tree of %d entries listed in %d of %d chunks, map %s: %w", t.Entries, t.Listing, t.Chunks, t.Map, ErrInvalid)
	}
	return nil
}

// Encode returns the bytes whose CID names the tree.
func (t Tree) Encode(c *Codec) (Verified, error) {
	if err := t.Validate(); err != nil {
		return Verified{}, fmt.Errorf("encode tree: %w", err)
	}
	b, err := c.Marshal(treeWire{treeMagic, t.Entries, t.Size, t.Chunks, t.Listing, t.Depth(), t.Map})
	if err != nil {
		return Verified{}, fmt.Errorf("encode tree: %w", err)
	}
	return Seal(b), nil
}

// DecodeTree reads an encoded tree; anything but the one encoding of a valid one
// is ErrCorrupt.
func DecodeTree(c *Codec, b []byte) (Tree, error) {
	if len(b) > RootSizeMax {
		return Tree{}, fmt.Errorf("tree of %d bytes: %w: limit is %d", len(b), ErrCorrupt, RootSizeMax)
	}
	var w treeWire
	if err := c.Unmarshal(b, &w); err != nil {
		return Tree{}, fmt.Errorf("tree: %w", err)
	}
	if w.Magic != treeMagic {
		return Tree{}, fmt.Errorf("tree: %w: magic %.20q, want %q", ErrCorrupt, w.Magic, treeMagic)
	}
	t := Tree{w.Entries, w.Size, w.Chunks, w.Listing, w.Map}
	again, err := t.Encode(c)
	if err != nil {
		return Tree{}, fmt.Errorf("tree: %w: %w", ErrCorrupt, err)
	}
	if !bytes.Equal(again.Bytes(), b) {
		return Tree{}, fmt.Errorf("tree: %w: not the canonical encoding", ErrCorrupt)
	}
	return t, nil
}

// TreePager cuts a listing into pages. A page ends behind an entry that the hash
// of its path picks, so that a change of one file changes one page, and two
// listings of the same entries are the same pages.
type TreePager struct {
	checker TreeChecker
	entries []TreeEntry
	size    int
}

// treePageOften is how many entries a page has on average. Two bytes of the hash
// decide.
const treePageOften = 512

// Add appends an entry, whose slices it keeps. The page that it completes is
// returned, else nil.
func (p *TreePager) Add(c *Codec, e TreeEntry) ([]byte, error) {
	if err := p.checker.Next(e); err != nil {
		return nil, err
	}
	var page []byte
	n := e.sizeMax()
	if p.size+n > TreePageSizeMax-treePageHead {
		var err error
		if page, err = p.flush(c); err != nil {
			return nil, err
		}
	}
	p.entries, p.size = append(p.entries, e), p.size+n
	sum := Sum(e.Path)
	if page == nil && binary.BigEndian.Uint16(sum[:])%treePageOften == 0 {
		return p.flush(c)
	}
	return page, nil
}

// Finish checks that the listing is complete, and returns its last page, or nil
// when there is nothing left.
func (p *TreePager) Finish(c *Codec) ([]byte, error) {
	if err := p.checker.Finish(); err != nil {
		return nil, err
	}
	return p.flush(c)
}

func (p *TreePager) flush(c *Codec) ([]byte, error) {
	if len(p.entries) == 0 {
		return nil, nil
	}
	b, err := EncodeTreePage(c, p.entries)
	p.entries, p.size = p.entries[:0], 0
	return b, err
}
