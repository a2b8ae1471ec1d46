package volume

import (
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

// AdoptedSegment is a sealed segment, and where its bytes are.
type AdoptedSegment = journal.AdoptedSegment

// Adopt fills the folder of a volume that Create has made, and nobody has opened, with
// segments that a record names; see journal.Adopt.
func Adopt(dir string, id content.VolumeID, segments []AdoptedSegment) error {
	return journal.Adopt(dir, id, segments)
}
