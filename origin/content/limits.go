// Package content holds the nouns of grange: what content is, how it is named
// and how large it may be. Every other package imports it; it imports nothing
// of ours.
//
// A chunk is up to [ChunkSizeDefault] raw bytes, named by its [CID]. An image is
// a [Root] over a block map: a Merkle tree of one node type, [Node], whose
// leaves name chunks. Everything in this package is immutable once named.
package content

const (
	// SectorSize is the unit of addressing of a block device, in bytes.
	SectorSize = 512

	// ChunkSizeDefault is the raw size of a chunk of a block image. 128 KiB reads
	// 1.5 times the bytes a booting guest touches, with half the index of 64 KiB.
	ChunkSizeDefault = 128 << 10
	// ChunkSizeMin and ChunkSizeMax bound the size that a root may say.
	ChunkSizeMin = 4 << 10
	ChunkSizeMax = 1 << 20

	// RunSize is the unit of leads and of origin reads: this much of a pack.
	RunSize = 1 << 20

	// MapFanout is the number of entries of a block map node.
	MapFanout = 1024

	// SizeMax bounds an image or volume, in bytes: three levels of map at ChunkSizeDefault.
	SizeMax = 16 << 40
	// ChunksMax bounds the chunks of one root: SizeMax in the smallest ones. Four levels
	// of map name them, and a bitmap their numbers.
	ChunksMax = SizeMax / ChunkSizeMin

	// NameMax bounds a name, in bytes.
	NameMax = 128

	// FarmMax bounds the name of a farm, in bytes, as that of a label in DNS: it is in each
	// certificate of a chain, and so five times in a record.
	FarmMax = 63

	// SegmentMax bounds the Segment of a name, in bytes: file systems take no more.
	SegmentMax = 255

	// RecordSizeMax bounds an encoded record, so that a list of names can be
	// kept in memory and a record read in one packet burst.
	RecordSizeMax = 4 << 10

	// NodeSizeMax bounds an encoded block map node: MapFanout entries of a
	// tagged 36-byte CID in a three-element array, and the header.
	NodeSizeMax = 64 << 10

	// RootSizeMax bounds an encoded root.
	RootSizeMax = 512

	// LineageMax is how many ancestors of a root are remembered: members that
	// hold one of them may hold chunks of the root.
	LineageMax = 4
)
