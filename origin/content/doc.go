// Package content holds the nouns of grange: what content is, how it is named
// and how large it may be. Every other package imports it; it imports nothing
// of ours.
//
// A chunk is up to [ChunkSizeDefault] raw bytes, named by its [CID]. An image is
// a [Root] over a block map: a Merkle tree of one node type, [Node], whose
// leaves name chunks. Everything in this package is immutable once named.
package content
