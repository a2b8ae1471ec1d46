// Package fold moves what lies in the journals of volumes to the origin: as merged
// segments that the volume's record names, or as the chunks of a new root.
//
// The record is what counts. An object is in the bucket before a record names it, and
// nothing on this disk, and no object, goes before the record that does without it is
// written and what it names was seen to be there. So whatever fails or ends in between
// leaves objects that nothing names, for garbage collection, and a fold that is done
// again.
//
// Keys in the bucket are written once. Whoever finds one taken compares: the same bytes
// are an earlier try of its own.
package fold
