package wire

import "github.com/grangemesh/grange/origin/content"

const (
	// IndexesMax is how many objects one Want asks for: those of one map node.
	IndexesMax = content.MapFanout
	// BodySizeMax bounds an object, in bytes: the largest chunk or map node.
	BodySizeMax = content.ChunkSizeMax
	// PageSizeMax bounds a locator page, in bytes: 1,024 entries with the place of
	// the child, and of its page above level 1, and a table of packs.
	PageSizeMax = 160 << 10
	// CallSizeMax bounds the body of a call and of its answer, in bytes: lists of
	// some hundred records. Larger things are content.
	CallSizeMax = 1 << 20
	// MethodMax bounds the name of a call's method, in bytes.
	MethodMax = 64
	// TextMax bounds the text of an error, in bytes; what is over is cut.
	TextMax = 512
)
