package content

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// KeySpace is what the keys of one sort of object at an origin begin with:
//
//	space       behind it              what it is                         written
//	records/    NAMESPACE/NAME         the record of a name               over the one before
//	packs/      SCOPE/HOUR-ID.pack     chunks and maps of a scope         once
//	index/      SCOPE/HOUR-ID.index    directories of packs of a scope    once
//	            SCOPE/HOUR-ID.suspect  a mark on the pack of that name    once
//	journals/   VOLUME/EPOCH-AFTER-THROUGH  a sealed segment of a volume  once
//	            VOLUME/EPOCH-AFTER-tail     what a flush of it has put    once
//	garbage/    HOUR-ID.batch          what a collection is to delete     over the one before
//	probe/      ID                     how a start tries what it may      deleted at once
//
// and KeyMesh, which says whose origin it is. A NAMESPACE is a Kind.Space, a SCOPE the
// text of a Scope.
type KeySpace string

// The key spaces.
const (
	KeyRecords  KeySpace = "records/"
	KeyPacks    KeySpace = "packs/"
	KeyIndexes  KeySpace = "index/"
	KeyJournals KeySpace = "journals/"
	KeyGarbage  KeySpace = "garbage/"
	KeyProbes   KeySpace = "probe/"

	KeyMesh = "grange.json"
)

// Of returns what the keys of a scope begin with.
func (s KeySpace) Of(scope Scope) string { return string(s) + scope.String() + "/" }

// IsImmutableKey reports whether the object of a key is written once and never changed,
// so that a copy is as good as the object.
func IsImmutableKey(key string) bool {
	switch KeySpace(key[:strings.IndexByte(key, '/')+1]) {
	case KeyPacks, KeyIndexes, KeyJournals:
		return true
	}
	return false
}

// VolumeID names a volume through deletions and creations of its name. It is random.
type VolumeID [16]byte

// String returns the ID in hexadecimal, as folders and keys have it.
func (id VolumeID) String() string { return hex.EncodeToString(id[:]) }

// Position is a place in the journal of a volume: behind the entry Seq, with which segment Number ended. The
// zero Position is the beginning. Numbers and seqs rise through the whole life of a volume, whoever writes
// it, so that a later position has the larger Seq.
type Position struct {
	Number uint64 `cbor:"number" json:"number"`
	Seq    uint64 `cbor:"seq" json:"seq"`
}

// SegmentRef names a sealed segment of a journal in the one form that it has on a disk, at a holder and in
// the bucket. It covers all entries behind After up to Through, those that nothing reads any more left out;
// so the refs of a volume are a chain without gaps, in which one's Through is the next one's After.
type SegmentRef struct {
	// Volume wrote it: a fork's chain begins with segments of what it was made from.
	Volume VolumeID
	// Epoch under which it was written.
	Epoch          uint64
	After, Through Position
	// Bytes is its length, and Sum the first half of the BLAKE3 of all of them.
	Bytes int64
	Sum   [16]byte
	// Tails is how many tails it lies in at an origin, one following the other, where it has no object of its
	// own: flushes have put them. Bytes is of their segments together then, and Sum of their headers.
	Tails int
}

// Key returns the key at an origin of a segment that has an object of its own. No two segments of a volume that differ in
// where they begin or end share one.
func (s SegmentRef) Key() string {
	return fmt.Sprintf("%s%s/%016x-%016x-%016x", KeyJournals, s.Volume, s.Epoch, s.After.Number, s.Through.Number)
}

const tailSuffix = "-tail"

// TailKey returns the key of a tail: what a flush has put, behind After. It does not say where that ends, so that one
// alone can come there.
func (s SegmentRef) TailKey() string {
	return fmt.Sprintf("%s%s/%016x-%016x%s", KeyJournals, s.Volume, s.Epoch, s.After.Number, tailSuffix)
}

// ParseJournalKey returns what the key of a segment or a tail says: the volume, the epoch, and the numbers of the places
// between which a segment lies; of a tail, that of the first. Any other key is ErrInvalid.
func ParseJournalKey(key string) (ref SegmentRef, tail bool, err error) {
	id, rest, _ := strings.Cut(strings.TrimPrefix(key, string(KeyJournals)), "/")
	rest, tail = strings.CutSuffix(rest, tailSuffix)
	raw, err := hex.DecodeString(id)
	if parts := strings.Split(rest, "-"); err == nil && len(raw) == len(ref.Volume) && (tail && len(parts) == 2 || !tail && len(parts) == 3) {
		ref.Volume = VolumeID(raw)
		for i, into := range []*uint64{&ref.Epoch, &ref.After.Number, &ref.Through.Number}[:len(parts)] {
			if *into, err = strconv.ParseUint(parts[i], 16, 64); err != nil {
				break
			}
		}
		if again := ref.Key(); err == nil && (!tail && again == key || tail && ref.TailKey() == key) {
			return ref, tail, nil
		}
	}
	return SegmentRef{}, false, fmt.Errorf("key %.200q: %w: want VOLUME/EPOCH-AFTER-THROUGH or VOLUME/EPOCH-AFTER%s", key, ErrInvalid, tailSuffix)
}
