// Package volume is a mutable disk: an immutable root, read through a Source,
// under a journal of what was written since.
//
// # Journal
//
// The journal is a row of segment files. A write is one entry appended to the
// open segment; a discard or a zeroing is an entry without data. Appending
// hands the entry to the kernel before it is acknowledged, so that the end of
// this process loses nothing; what a Flush has acknowledged outlives the machine.
// Package journal has the formats.
//
// A map in memory, in sectors, says which bytes of the journal are newest. It has layers:
// the open one is under all that is written, those below are frozen and part where a Seal
// was. A read looks through them, newest first, and then at the root. Frozen layers between
// which no position is kept are joined, and what is too much for the memory is spilled to a
// sorted file, which lasts as long as the process.
//
// # Compaction
//
// Rewriting the disk leaves dead entries. When the journal takes more than twice what lives
// in it, and a slack, the deadest segments of a layer are rewritten: neighbours become one
// merged segment, which is synced, and takes the name of the last of them. That is one step:
// its header names the others, which are removed, here or by the next start once it has found
// the rest whole. What made entries dead is synced first. No kept position is merged across.
//
// # Replay
//
// A bad entry whose seq is above every durable_seq that any entry carries was
// never synced: it is the tail, and is cut off. One at or below is corruption:
// the volume opens for reading only, and says which range is lost. A mark follows
// each sync, so that what was synced last is covered too; only a loss of power may
// take the last mark with it. The file synced says the same from outside; see package journal.
package volume
