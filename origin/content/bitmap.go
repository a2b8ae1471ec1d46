package content

import (
	"bytes"
	"fmt"
	"io"

	"github.com/RoaringBitmap/roaring/v2"
)

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

// DecodeBitmap reads an encoded bitmap from an untrusted member; anything else
// is ErrCorrupt.
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
