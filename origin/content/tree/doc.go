// Package tree is the format of a tree of files: what the chunks of a content.RootTree hold. It reads and writes
// chunks, and knows neither where they are nor what a file system is.
//
// A tree is four streams, each cut into chunks, one behind the other:
//
//	data      the bytes of all regular files in the order of a walk, the holes of large ones left out
//	listings  the top's Entry, and then the listings of all folders in that order: CBOR arrays of Entry
//	table     how long the chunks of both are, one uvarint each, in chunks of the root's ChunkSize
//	end       one chunk of 64 bytes, see end
//
// A walk gives a folder, and then what is in it by rising names, bytes compared, each folder with all that is in
// it. Nothing says where a file's bytes or a folder's listing lie: that follows from how much those before it take,
// of which a folder says the sum. So what changes in one place leaves the listings elsewhere as they are, and two
// trees share all that is alike in them.
//
// Data are cut by what is in them (FastCDC; Xia et al., USENIX ATC 2016), anew at each segment: a large file, or small
// ones that come together. A segment can be kept unread when its files have not changed.
package tree
