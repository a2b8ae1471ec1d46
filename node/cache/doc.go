// Package cache keeps verified chunks on this disk. It promises never to return
// bytes that are not the chunk that was asked for, and nothing else: any chunk
// may be gone at any time, and is fetched again.
//
// # Files
//
// Objects lie in slots of slabs of 16 MiB, a slab for each class of size. The
// index is an open-addressing table of 16-byte entries in a file that is mapped
// into memory, outside the heap, so it is loaded by mapping it. Nothing is
// synced: after a crash of the process the mapping is whole, as the kernel holds
// it; after a loss of power the index and the slabs may disagree in any way.
// That is harmless, as each object is hashed whole at its first touch after a
// start, and what does not match is dropped.
//
// # Reads
//
// A reader takes no lock: it finds the entry, reads the slot, and looks at the
// entry again. An entry is removed before its slot is written to, so an entry
// that is still there after the read vouches for what was read.
//
// # Index file
//
//	0   8  magic "GRCIDX\x00\x01"
//	8   8  entries
//	16  16 secret of the keyed hash
//	32  …  zeros up to 4096
//	4096   entries of 16 bytes:
//	       word 0: keyed hash of the CID; 0 is empty, 1 is removed
//	       word 1: slot of the slab (10 bits), slab (22 bits), length − 1 (20 bits),
//	               day of the last check (5), frequency (2), pinned (1), writing (4)
//
// The hash is keyed with a secret, so that nobody can make two chunks that share
// one.
package cache
