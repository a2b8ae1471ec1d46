package merge

import (
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Hot is the list that the record of a volume is to have: the chunks that a boot of its disk has read, or what it had where
// there are none; nil where a record has no room.
func Hot(c *content.Codec, of catalog.Folded, had *catalog.Boot, chunks []uint64) *catalog.Boot {
	if of.Head == nil || len(of.Segments) > catalog.HotSegmentsMax {
		return nil
	}
	root, err := of.Head.Root.Encode(c)
	if err != nil {
		return nil
	}
	list := had
	if len(chunks) > 0 {
		list = Merge(root.CID(), time.Now(), [][]uint64{chunks})
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
