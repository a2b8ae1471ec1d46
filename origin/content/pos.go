package content

import "fmt"

// Pos is the place of an object under a root: a chunk at level 0, a block map
// node above. The top node is at level Root.Depth, index 0. Members ask each
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

// Contains reports whether p is a place under r.
func (r Root) Contains(p Pos) bool {
	if p.Level < 0 || p.Level > r.Depth() {
		return false
	}
	_, span := Pos{Level: p.Level}.Chunks()
	return p.Index < (r.Chunks()+span-1)/span
}

// String returns "chunk N" or "node L/N".
func (p Pos) String() string {
	if p.Level == 0 {
		return fmt.Sprintf("chunk %d", p.Index)
	}
	return fmt.Sprintf("node %d/%d", p.Level, p.Index)
}
