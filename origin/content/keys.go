package content

import "strings"

// KeySpace is what the keys of one sort of object at an origin begin with:
//
//	space       behind it              what it is                         written
//	records/    NAMESPACE/NAME         the record of a name               over the one before
//	packs/      SCOPE/HOUR-ID.pack     chunks and maps of a scope         once
//	index/      SCOPE/HOUR-ID.index    directories of packs of a scope    once
//	            SCOPE/HOUR-ID.suspect  a mark on the pack of that name    once
//	journals/   VOLUME/EPOCH-NUMBER    a sealed segment of a volume       once
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
