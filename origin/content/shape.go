package content

import (
	"bytes"
	"fmt"
	"io"

	"github.com/RoaringBitmap/roaring/v2"
)

// Shape is what a disk and a tree share for those who move them: a row of chunks under
// a map. p2p, fetch, pack and warm know no more of what they move.
type Shape struct {
	// Chunks is how many there are, holes included.
	Chunks uint64
	// ChunkMax is the most bytes that a chunk has. Where Even is set, each has as many.
	ChunkMax int
	Even     bool
	// Map names the top node of the block map, at level Depth; a hole when all chunks are.
	Map CID
}

// Depth returns the level of the top node: the smallest number of levels of
// MapFanout entries that cover all chunks, at least 1.
func (s Shape) Depth() int {
	levels := 1
	for covered := uint64(MapFanout); covered < s.Chunks; covered *= MapFanout {
		levels++
	}
	return levels
}

// Leaves returns how many nodes the map has at level 1, holes included.
func (s Shape) Leaves() uint64 { return (s.Chunks + MapFanout - 1) / MapFanout }

// Contains reports whether p is a place of the shape.
func (s Shape) Contains(p Pos) bool {
	if p.Level < 0 || p.Level > s.Depth() {
		return false
	}
	_, span := Pos{Level: p.Level}.Chunks()
	return p.Index < (s.Chunks+span-1)/span
}

// CheckChunk fails with ErrInvalid when no chunk has n bytes.
func (s Shape) CheckChunk(n int) error {
	if n == s.ChunkMax || !s.Even && 0 < n && n < s.ChunkMax {
		return nil
	}
	if s.Even {
		return fmt.Errorf("%w: %d bytes, want %d", ErrInvalid, n, s.ChunkMax)
	}
	return fmt.Errorf("%w: %d bytes, want 1 to %d", ErrInvalid, n, s.ChunkMax)
}

// Pos is the place of an object under a root: a chunk at level 0, a block map node above. The top node is at
// level Shape.Depth, index 0. Members ask each other for (root, pos), never for a CID, so that the answerer
// can check the root's scope before it looks.
type Pos struct {
	Level int
	Index uint64
}

// Chunk returns the place of chunk index.
func Chunk(index uint64) Pos { return Pos{0, index} }

// Parent returns the place of the map node that names p, and p's entry in it.
func (p Pos) Parent() (Pos, int) {
	return Pos{p.Level + 1, p.Index / MapFanout}, int(p.Index % MapFanout)
}

// Child returns the place that entry i of the node at p names.
func (p Pos) Child(i int) Pos { return Pos{p.Level - 1, p.Index*MapFanout + uint64(i)} }

// Chunks returns the chunks below p: the first, and the one behind the last.
func (p Pos) Chunks() (first, end uint64) {
	span := uint64(1)
	for range p.Level {
		span *= MapFanout
	}
	return p.Index * span, (p.Index + 1) * span
}

// String returns "chunk N" or "node L/N".
func (p Pos) String() string {
	if p.Level == 0 {
		return fmt.Sprintf("chunk %d", p.Index)
	}
	return fmt.Sprintf("node %d/%d", p.Level, p.Index)
}

// Bitmap is a set of chunk indexes of one root: which of its chunks a member
// holds. The zero value is empty. Not safe for concurrent use.
type Bitmap struct{ set roaring.Bitmap }

// BitmapSizeMax bounds an encoded bitmap, in bytes: one bit for each chunk of
// SizeMax at ChunkSizeDefault, and the headers of its containers.
const BitmapSizeMax = 20 << 20

// Add puts index into the set. Indexes are below 2^32: SizeMax / ChunkSizeMin.
func (b *Bitmap) Add(index uint64) { b.set.Add(bitmapIndex(index)) }

// Remove takes index out of the set.
func (b *Bitmap) Remove(index uint64) { b.set.Remove(bitmapIndex(index)) }

// Has reports whether index is in the set.
func (b *Bitmap) Has(index uint64) bool { return index < 1<<32 && b.set.Contains(uint32(index)) }

// Len returns how many indexes are in the set.
func (b *Bitmap) Len() uint64 { return b.set.GetCardinality() }

// Bytes returns about how much memory the set takes.
func (b *Bitmap) Bytes() int { return int(b.set.GetSizeInBytes()) }

// Within reports whether all indexes of the set are below n.
func (b *Bitmap) Within(n uint64) bool { return b.set.IsEmpty() || uint64(b.set.Maximum()) < n }

// All calls yield with each index in rising order until it returns false.
func (b *Bitmap) All(yield func(uint64) bool) {
	b.set.Iterate(func(x uint32) bool { return yield(uint64(x)) })
}

// Union adds all of other.
func (b *Bitmap) Union(other *Bitmap) { b.set.Or(&other.set) }

// Clone returns a copy that shares nothing.
func (b *Bitmap) Clone() *Bitmap { return &Bitmap{*b.set.Clone()} }

func bitmapIndex(index uint64) uint32 {
	if index >= 1<<32 {
		panic(fmt.Sprintf("content: chunk index %d in a bitmap; the limit is 2^32", index))
	}
	return uint32(index)
}

// Encode returns the portable Roaring serialization, runs compressed.
func (b *Bitmap) Encode() ([]byte, error) {
	b.set.RunOptimize()
	return b.set.ToBytes()
}

// DecodeBitmap reads an encoded bitmap from an untrusted member; anything else is ErrCorrupt.
func DecodeBitmap(b []byte) (*Bitmap, error) {
	if len(b) > BitmapSizeMax {
		return nil, fmt.Errorf("bitmap of %d bytes: %w: limit is %d", len(b), ErrCorrupt, BitmapSizeMax)
	}
	var out Bitmap
	n, err := out.set.ReadFrom(bytes.NewReader(b))
	switch {
	case err != nil && err != io.EOF:
		return nil, fmt.Errorf("bitmap: %w: %w", ErrCorrupt, err)
	case n != int64(len(b)):
		return nil, fmt.Errorf("bitmap: %w: %d bytes after the end", ErrCorrupt, int64(len(b))-n)
	}
	if err := out.set.Validate(); err != nil {
		return nil, fmt.Errorf("bitmap: %w: %w", ErrCorrupt, err)
	}
	return &out, nil
}
