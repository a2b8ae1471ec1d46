package volume

import (
	"fmt"
	"os"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

// What of the formats others need: see package journal.
type (
	// Header is what a segment says of itself first.
	Header = journal.Header
	// Range is a part of the disk, in bytes.
	Range = blockdev.Range
	// AdoptedSegment is a sealed segment, and where its bytes are.
	AdoptedSegment = journal.AdoptedSegment
)

// HeaderSize and SegmentSuffix are how long a segment's header is, and what its name ends with.
const HeaderSize, SegmentSuffix = journal.HeaderSize, journal.Suffix

// DecodeHeader reads the header with which b begins; anything else is ErrCorrupt.
func DecodeHeader(b []byte) (Header, error) {
	h, ok := journal.DecodeHeader(b)
	if !ok {
		return Header{}, fmt.Errorf("%w: no header of a segment", content.ErrCorrupt)
	}
	return h, nil
}

// Inspect is journal.Inspect.
func Inspect(f *os.File, size int64) (h Header, seq uint64, end int64, err error) {
	return journal.Inspect(f, size)
}

// Adopt fills the folder of a volume that Create has made, and nobody has opened, with
// segments that a record names; see journal.Adopt.
func Adopt(dir string, id content.VolumeID, segments []AdoptedSegment) error {
	return journal.Adopt(dir, id, segments)
}
