package wire

import "github.com/grangemesh/grange/origin/content"

const (
	// IndexesMax is how many objects one Want asks for: those of one map node.
	IndexesMax = content.MapFanout
	// BodySizeMax bounds an object, in bytes: the largest chunk, map node or root.
	BodySizeMax = content.ChunkSizeMax
	// PageSizeMax bounds a locator page, in bytes: each of MapFanout entries in a
	// pack of its own, with room for the pack's name.
	PageSizeMax = 512 << 10
	// EnvelopeSizeMax bounds the envelope of an Introduce, in bytes.
	EnvelopeSizeMax = content.RecordSizeMax
	// CallSizeMax bounds the body of a call and of its answer, in bytes: lists of
	// some hundred records. Larger things are content.
	CallSizeMax = 1 << 20
	// MethodMax bounds the name of a call's method, in bytes.
	MethodMax = 64
	// TextMax bounds the text of an error, in bytes; what is over is cut.
	TextMax = 512
	// ChainSizeMax bounds an encoded chain, in bytes: three certificates of at most 600.
	ChainSizeMax = 4 << 10
	// PeerIDMax bounds a peer id, in bytes: an identity hash of an Ed25519 key is
	// 38 long, a SHA-256 of any other 34.
	PeerIDMax = 64
	// BitmapPartMax bounds one part of a bitmap, in bytes, so that a large one
	// does not hold up the calls on the same stream.
	BitmapPartMax = 64 << 10
	// IndexMax bounds an index: what a Bitmap can hold.
	IndexMax = 1<<32 - 1
)
