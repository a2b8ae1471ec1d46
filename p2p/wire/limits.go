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
	// CallSizeMax bounds a call's body and answer, in bytes: some hundred records.
	CallSizeMax = 1 << 20
	// MethodMax bounds the name of a call's method, in bytes.
	MethodMax = 64
	// TextMax bounds the text of an error, in bytes; what is over is cut.
	TextMax = 512
	// ChainSizeMax bounds an encoded chain, in bytes: three certificates of at most 600.
	ChainSizeMax = 4 << 10
	// PeerIDMax bounds a peer id, in bytes: an Ed25519 key's is 38 long, any other's 34.
	PeerIDMax = 64
	// BitmapPartMax bounds one part of a bitmap, in bytes: calls go in between.
	BitmapPartMax = 64 << 10
	// IndexMax bounds an index: what a Bitmap can hold.
	IndexMax = 1<<32 - 1
)
