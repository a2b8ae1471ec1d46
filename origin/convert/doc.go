// Package convert turns what operators have (raw and virtual disk files,
// directories, tar files) into a disk to be published, and images back into
// files.
//
// Raw disks are read in place. Those of other formats are read by a child in a
// fence, and what is compressed is inflated by one: see foreign. A disk stands
// alone: none may name another file of the host. What was cut, or is written to
// while it is read, is refused: an end and a cut never look alike.
//
// A directory or tar file becomes an ext4 file system. A newer version of one is
// written into a copy of the previous disk, by the same code that fills a new one
// (it compares with what is there), so that only what changed is new: a file system
// made afresh shares almost nothing with the one before. As root the kernel writes
// it, elsewhere debugfs does, afresh; the kernel is given no file system but those that
// were made here. What can't be had of a tree is said.
package convert
