// Package cache keeps verified chunks on this disk. It promises never to return
// bytes that are not the chunk that was asked for, and nothing else: any chunk
// may be gone at any time, and is fetched again.
//
// # Files
//
// Objects lie in slots of slabs of 16 MiB, a slab for each class of size. A slot
// that is freed is filled again; what is too much goes back to the disk by the
// slab, as a hole. The index is a table of 12-byte entries in a file that is
// mapped into memory, outside the heap: 14.8 bytes an object when the quota is
// full of chunks of 128 KiB, 118 KiB a GiB. The names file says which object each
// slot is filled with; it is read when something is evicted, and to make
// the index anew. Beside these, the heap has some 100 bytes a slab.
//
// # Crashes
//
// Nothing is synced. After the death of the process the kernel still holds all
// that was written, the mapping too, so the next start has all that there was.
// After a loss of power files may disagree in any way: the index says which boot
// of the machine changed it, or its checksum since it was shut, and if neither
// holds it is made anew from the names. Whatever a start finds, each object is
// hashed whole at its first touch, and what does not match is dropped.
//
// # Reads
//
// A reader takes no lock: it notes how many objects of its stripe were removed,
// finds the entry, reads the slot, and looks at the count again. A removal is
// counted before the slot can be written to, so an unchanged count vouches for
// what was read; a changed one has the read repeated.
//
// # Reach
//
// Each object carries how far it may go: the widest of the scopes under which its
// bytes were obtained here. It is in the index and in the names, so that a cache
// whose index is lost gives nothing to others that it did not give before, and
// nothing that was taken back: who narrows a reach has it on disk.
//
// # Index file
//
// In the byte order of the machine, as it never leaves it:
//
//	0     8   magic "GRCIDX\x00\x02"
//	8     4   entries E, a multiple of 16
//	12    4   slabs S, even
//	16    16  secret of the keyed hash
//	32    16  boot of the machine that it was last opened in
//	48    4   1 once it is shut, else 0
//	52    4   CRC32C of all from 4096 on, when it is shut
//	56    …   zeros
//	4096  4S  for each slab 1 + its class, whose slots are 16 KiB << class; 0 unused
//	      8E  for each entry, from the lowest bit: uses (2), period of the last use
//	          (2), day of the last check (2), in the main queue, pinned, fills its
//	          slot (1 each), tag (55); 0 is free
//	      4E  for each entry: slot (10), slab (20), reach (2)
//
// The tag and the two buckets of 16 entries in which an object may lie are a
// SipHash-128 of its CID under the secret, so nobody can make two chunks that
// share them; by chance an absent chunk is taken for one that is here once in
// 10^15 times, and found out by the next check.
//
// # Names file
//
// The record of a slot that is free again is zeros. For slot n of slab s, at 40 KiB × s + 40 × n, little-endian:
//
//	0   32  CID
//	32  4   length (30), reach (2)
//	36  4   CRC32C of the above, xor 0x9e3779b1 × (s << 10 | n)
//
// # Pins
//
// A file for each name, which begins with @ for what is followed: magic "GRPINS\x00\x01", then CIDs in rising order.
package cache
