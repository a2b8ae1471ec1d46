package volume

import (
	"fmt"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

// What of the formats others need: see package journal.
type (
	// Header is what a segment says of itself first.
	Header = journal.Header
	// AdoptedSegment is a sealed segment, and where its bytes are.
	AdoptedSegment = journal.AdoptedSegment
)

// HeaderSize is how long the header of a segment is, in bytes.
const HeaderSize = journal.HeaderSize

// DecodeHeader reads the header with which b begins; anything else is ErrCorrupt.
func DecodeHeader(b []byte) (Header, error) {
	h, ok := journal.DecodeHeader(b)
	if !ok {
		return Header{}, fmt.Errorf("%w: no header of a segment", content.ErrCorrupt)
	}
	return h, nil
}

// Adopt fills the folder of a volume that Create has made, and nobody has opened, with
// segments that a record names; see journal.Adopt.
func Adopt(dir string, id content.VolumeID, segments []AdoptedSegment) error {
	return journal.Adopt(dir, id, segments)
}
