// Package object has what is fetched: one thing under a root, and where it lies.
package object

import (
	"fmt"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// Object is one thing to fetch: where it stands under the root, its name, where it
// lies at the origin, and how far it goes once it has come. A map node brings its
// page.
type Object struct {
	Pos   content.Pos
	ID    content.CID
	Page  content.CID
	At    pack.Location
	Pair  pack.Pair
	Reach cache.Reach
}

// Node returns the object of a map node.
func Node(p content.Pos, pair pack.Pair, reach cache.Reach) Object {
	return Object{Pos: p, ID: pair.Node.CID, Page: pair.Page.CID, At: pair.Node.Location, Pair: pair, Reach: reach}
}

// Key names an object: a map node with another page is another, and so is one
// that is fetched to go less far, as bytes that may not go farther are under way for
// it, or from another place, as a record may say where it is not.
type Key struct {
	id, page   content.CID
	at, pageAt pack.Location
	level      int
	reach      cache.Reach
}

// Key returns the object's.
func (o Object) Key() Key {
	return Key{o.ID, o.Page, o.At, o.Pair.Page.Location, o.Pos.Level, o.Reach}
}

// Frames are what is read for it at the origin.
func (o Object) Frames() []pack.Extent {
	if o.Pos.Level > 0 {
		return []pack.Extent{o.Pair.Node, o.Pair.Page}
	}
	return []pack.Extent{{CID: o.ID, Location: o.At}}
}

// Stored is how many bytes that is.
func (o Object) Stored() (n int) {
	for _, e := range o.Frames() {
		n += int(e.Length)
	}
	return n
}

// Dense reports whether its publisher found that it does not get smaller.
func (o Object) Dense() bool {
	at := o.At
	if o.Pos.Level > 0 {
		at = o.Pair.Node.Location
	}
	return at.Length > 0 && at.Codec == pack.CodecRaw
}

// RunKey is what a run's lead is chosen by.
func RunKey(r pack.Run) string { return fmt.Sprintf("%s/%d", r.Pack, r.N) }

// MapNode is a decoded map node with its locator page, their names, and how far the
// lesser of the two may go.
type MapNode struct {
	Node       content.Node
	Page       *pack.Page
	ID, PageID content.CID
	Reach      cache.Reach
}

// MapKey is what the nodes of a root's map are called by in memory.
func MapKey(p content.Pos) uint64 { return uint64(p.Level)<<48 | p.Index }

// Chunk returns the object of a chunk that a leaf names; false for a hole.
func (n *MapNode) Chunk(index uint64, reach cache.Reach) (Object, bool) {
	i := int(index % content.MapFanout)
	at, ok := n.Page.Child(i)
	return Object{Pos: content.Chunk(index), ID: n.Node.Entry(i), At: at, Reach: reach}, ok && !n.Node.Entry(i).IsHole()
}

// Names are the names that a map node at p brings: of itself, its page, and the chunks of a
// leaf.
func (n *MapNode) Names(p content.Pos) []content.CID {
	out := []content.CID{n.ID, n.PageID}
	if p.Level > 1 {
		return out
	}
	for _, id := range n.Node.Entries {
		if !id.IsHole() {
			out = append(out, id)
		}
	}
	return out
}
