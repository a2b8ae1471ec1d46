package content

import "fmt"

// Shape is what a disk and a tree share for those who move them: a row of chunks under
// a map. p2p, fetch, pack and warm know no more of what they move.
type Shape struct {
	// Chunks is how many there are, holes included.
	Chunks uint64
	// ChunkMax is the most bytes that a chunk has. Where Even is set, each has as many.
	ChunkMax int
	Even     bool
	// Map names the top node of the block map, at level Depth; a hole when all chunks
	// are.
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

// Pos is the place of an object under a root: a chunk at level 0, a block map
// node above. The top node is at level Shape.Depth, index 0. Members ask each
// other for (root, pos), never for a CID, so that the answerer can check the
// root's scope before it looks.
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
