// Package volume is a mutable disk: an immutable root, read through a Source,
// under a journal of what was written since.
//
// # Journal
//
// The journal is a row of segment files. A write is one entry appended to the
// open segment; a discard or a zeroing is an entry without data. An extent map
// in memory, in sectors, says which bytes of the journal are newest. Appending
// hands the entry to the kernel before it is acknowledged, so that the end of
// this process loses nothing; what a Flush has acknowledged outlives the machine.
//
// A guest may have any bytes on its disk, those of a journal too. So the sums of entries
// and tables are those of the volume, the number of the segment (8), and then what they
// are said to be of; those of the files synced and kept have number 0.
//
// # Segment, version 1, all integers little-endian
//
//	0   8  magic "GRSEG\x00\x00\x01"
//	8   16 volume
//	24  8  epoch
//	32  8  number of the segment
//	40  8  seq of its first entry
//	48  12 zeros
//	60  4  CRC32C of the bytes before
//	64     entries
//
// # Entry
//
//	0   4  magic "GRE\x01"
//	4   1  kind: 1 data, 2 zeros, 3 mark, 4 zeros that keep their space
//	5   3  zeros
//	8   8  seq, one more than that of the entry before
//	16  8  durable_seq: the highest seq known to be synced when this was written
//	24  8  first sector
//	32  4  sectors
//	36  4  CRC32C of the bytes before and of the sums
//	40     of data: CRC32C of each 4 KiB, the last of what is left, 4 bytes each;
//	       then the data
//
// # Table
//
// A segment that is full ends with a table of what it has changed, so that a start need
// not read its data, whose sums are then checked when they are read:
//
//	0   4  magic "GRT\x01"
//	4   4  number of extents
//	8   8  seq of the segment's last entry
//	16  32 each extent: first sector 8, offset of its data in the segment 8 (0: zeros),
//	       sectors 4, sectors of the entry's data before it 4, and in all 4 (of zeros: 0
//	       those of a hole), sum of an entry of one unit 4
//	-16 8  offset of the table in the segment
//	-8  4  magic "GRT\x01"
//	-4  4  CRC32C of the table's bytes before
//
// It counts only where the whole segment is known to be durable: a loss of power may
// leave a table and not what it speaks of.
//
// # Segments that go
//
// A segment of which nothing is newest goes, but for the last one. First all entries are
// synced, for it is they that made it dead; then the file kept, replaced as a whole, says
// which segments are left up to some number; then the others are removed. Those behind
// that number have all numbers in turn, and the first of them has begun. A start removes
// what a crash has left of the others once it has found the rest whole, never before:
//
//	0   4  magic "GRK\x01"
//	4   8  number up to which it speaks
//	12  8  seq of the last entry up to there
//	20  4  how many are left
//	24  16 each, by number: its number 8, its bytes 8
//	-4  4  CRC32C of the bytes before
//
// # Replay
//
// A bad entry whose seq is above every durable_seq that any entry carries was
// never synced: it is the tail, and is cut off. One at or below is corruption:
// the volume opens for reading only, and says which range is lost. A mark follows
// each sync, so that what was synced last is covered too; only a loss of power may
// take the last mark with it.
//
// The file synced says how far the journal is durable, and is written after each sync:
// what is missing or bad before that is corruption, whatever the entries say. It is there
// from the creation of the volume on, all zeros but for magic and sum, and without it the
// journal is taken for lost: absence is never newness. It has two slots of the form below, at 0 and 4096, which are written in turn; the one that
// is farther counts. Integers are little-endian:
//
//	0   4  magic "GRN\x01"
//	4   8  number of a segment; those before it are durable whole
//	12  8  bytes of that one that are durable
//	20  8  seq of the last entry in them
//	28  4  CRC32C of the bytes before
package volume
