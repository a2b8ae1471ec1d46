package merge

import (
	"time"

	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Hot is the list that the record of a volume is to have: chunks that were read first since its disk was opened, or what it
// had, where these are too few to tell, or as many as are noted: who reads so much copies; nil where a record has no room.
func Hot(c *content.Codec, of catalog.Folded, had *catalog.Boot, chunks []uint64) *catalog.Boot {
	if of.Head == nil || len(of.Segments) > catalog.HotSegmentsMax {
		return nil
	}
	root, err := of.Head.Root.Encode(c)
	if err != nil {
		return nil
	}
	list := had
	if n := len(chunks); n >= touch.Least && n < touch.Max {
		list = Merge(root.CID(), time.Now(), [][]uint64{chunks})
	}
	if list == nil {
		return nil
	}
	shape := of.Head.Root.Shape()
	list = list.Only(func(chunk uint64) bool { return chunk < shape.Chunks }) // it may have been rolled back to when it was smaller
	if list == nil {
		return nil
	}
	list = list.Fit(catalog.HotSizeMax)
	list.Root = root.CID() // a fold changes what is there, and not where
	return list
}
