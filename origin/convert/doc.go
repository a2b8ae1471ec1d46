// Package convert turns what operators have (raw and virtual disk files,
// directories, tar files) into a disk to be published, and images back into
// files.
//
// qcow2 is read in place by a library. Other virtual disk formats are unpacked
// by qemu-img into a sparse temporary file. Neither may read a file of the host
// that the operator did not name: a disk stands alone, or lies with its parts in
// one folder.
//
// A directory or tar file becomes an ext4 file system. A newer version of one is
// written into a copy of the previous disk, by the same code that fills a new one
// (it compares with what is there), so that only what changed is new: a file system
// made afresh shares almost nothing with the one before. As root the kernel writes
// it, elsewhere debugfs does, afresh. What can't be had of a tree is said.
package convert
