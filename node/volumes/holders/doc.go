// Package holders is durability by other members of the farm: the store of what this node holds for their
// volumes, and both who lets others hold what it writes (Writer) and who takes over what they hold (Inherit).
//
// # What a holder has
//
// A volume's unfolded journal as the bytes of its segments, from the base on that its record has, without a
// gap: each segment's header says what it follows, and a segment begins only where the one before is there
// whole. It answers for bytes once they are durable. It has promised itself to one claim, an epoch and one
// start of a process, before it takes anything for it, and takes nothing of any earlier one from then on. What
// it has it never replaces by other bytes; what lies behind that a later epoch did not inherit is cut by that
// epoch's word, and what the volume's record has goes by its base.
//
// # Files
//
// A volume's folder, named by its ID, has the segments under the names that they have on
// the writer's disk, and the note below, which is replaced as a whole. A segment is called
// "new" behind its name until the one before it is durable, so that one with its own name
// follows one that is whole. Integers of the note are little-endian:
//
//	0   8  magic "GRHOLD\x00\x02"
//	8   16 volume
//	24  8  epoch that was promised
//	32  8  incarnation
//	40  8  base: number of the segment
//	48  8  and the seq with which it ended
//	56  32 key of the member that it was promised to
//	88  8  seq up to where all has to be there before another claim is promised
//	96  1  length of the volume's name
//	97  1  number of ancestors
//	98     name, then the ancestors, 16 bytes each
//	-4  4  CRC32C of the bytes before
package holders
