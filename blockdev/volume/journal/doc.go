// Package journal has the formats of a volume's journal, which are the same on the disk of
// its node, at holders and in the bucket.
//
// A guest may have any bytes on its disk, those of a journal too. So the sums of entries
// and tables are those of the volume, the number of the segment (8), and then what they
// are said to be of; those of the file synced have number 0.
//
// # Segment, version 2, all integers little-endian
//
//	0   8  magic "GRSEG\x00\x00\x02"
//	8   16 volume that wrote it
//	24  8  epoch under which it was written
//	32  8  number of the segment
//	40  16 position that it follows: the number of the segment before 8, its last seq 8
//	56  8  of a merged one, the last seq that it stands for, else 0
//	64  8  of a merged one, the seq that the journal must reach, else 0
//	72  4  zeros
//	76  4  CRC32C of the bytes before
//	80     entries
//
// Its file is named <epoch>-<number>.seg, 16 hexadecimal digits each. Numbers and seqs rise
// through the whole life of a volume, and of its forks; the first entry of a segment has the
// seq behind the one that it follows.
//
// A merged segment stands for all from the position that it follows on up to its own: those
// entries that are needed, in the order of the disk and all with its last seq, and a table.
// It was whole and durable before it had its name. What made the others needless may lie
// behind it: without that the journal is not whole.
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
// A segment that has ended ends with a table of what it has changed, so that a start need
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
// # What is synced
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
package journal
