// Package wire holds the frames of the exchange protocol: how members ask each
// other for chunks. It is pure: no connection, no clock, no goroutine.
//
// # Streams
//
// A stream belongs to who opened it: the asker sends requests, the other end
// answers them on the same stream, in any order. Its protocol id carries the mesh
// and the version, see [ProtocolID]. The first frame of each direction is a
// [Hello]; the asker need not wait for the other's before it asks. The lane that it
// names says which requests the stream takes: those of journals have their own.
//
// A request lives from its first frame until it has ended: a Want when each index
// was answered by Data or Absent, any request by Answer, Refer, Unknown or Error.
// A canceled request ends like any other, at the latest by an Error. Its id may
// be used again only then.
//
// # Frames
//
// All numbers are big-endian. A frame is a header of 10 bytes and its payload:
//
//	offset  size
//	     0     4  length of the payload
//	     4     1  type
//	     5     1  flags, zero where none are named
//	     6     4  id of the request, 0 for Hello and Ack
//
// The payloads (asker's frames marked >, answers <):
//
//	 1 Hello      ><  magic "grange-x" (8), version (1), lane (1), certificate chain
//	 2 Want       >   root (32), level (1), priority (1), with flag 8 trace (24), indexes; flags 1 = fetch, 2 = passed, 4 = no origin, 8 = traced
//	 3 Cancel     >   nothing
//	 4 Data        <  index (8), raw length (4), page length (4), codec (1), spare KiB/s (4), body, page; flag 1 = acknowledge
//	 5 Absent      <  indexes; flag 1 = nowhere
//	 6 Queued      <  position (4)
//	 7 Progress    <  nothing
//	 8 Refer       <  length of the peer id (1), peer id, then length (1) and bytes of each address
//	 9 Unknown     <  nothing
//	10 Introduce  >   envelope of a record
//	11 Subscribe  >   root (32)
//	12 Bitmap      <  part of an encoded bitmap; flag 1 = its last part
//	13 Call       >   length of the method's name (1), name, body
//	14 Answer      <  body
//	15 Error       <  kind (1), text
//	16 Ack        >   bytes of Data frames received on this stream since the last (4)
//	17 Promise    >   claim, base, whole (8), length of the volume's name (1), name, ids of ancestors (16 each); flag 1 = begin
//	18 Extend     >   claim, place, length of the segment before or 0 (8), seq (8), bytes
//	19 Read       >   claim, place, length (4)
//	20 Cut        >   claim, place, seq (8)
//	21 Drop       >   claim, base; flag 1 = all
//	22 Status     >   claim
//	23 Held        <  claim, base, quiet in ms (8), for each segment: volume (16), epoch (8), after, end, bytes (8)
//
// Indexes are ranges: their number (2), then for each the distance from the end
// of the one before and its length, both as unsigned varints; ranges don't touch,
// so a set of indexes has one encoding. The chain is CBOR, see package trust.
//
// The journal lane carries 17 to 23. A claim is a volume's id (16), epoch (8) and
// incarnation (8): each message names them, so that none is taken for another volume's,
// or for that of an earlier writer. A place is a segment's epoch (8) and number (8), and
// an offset in it (8); base, after and end are positions: a segment's number (8) and a seq (8).
// An Extend ends by an Answer once its bytes, and all before them, are durable, or by a
// Held, if something before them is missing: then nothing was taken.
//
// A body is as long as the payload leaves: with codec 0 it is the raw bytes, with
// codec 1 one zstd frame that holds them.
package wire
